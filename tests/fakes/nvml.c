/* A driver library with four cards, for the real collector to load as libnvidia-ml.so.1.
 *
 * Cards 0 and 1 are a pair with two NVLinks; 2 is cut into two MIG slices; 3 is lost.
 * FAKE_NVML=hang, crash or mismatch makes it fail in nvmlInit as broken drivers do. Functions that
 * are not here are "not found", as in an older driver.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15, MISMATCH = 18 };
#define MIB (1ull << 20)
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;

static int cards[4] = {0, 1, 2, 3}, slices[2] = {10, 11};

int nvmlInitWithFlags(unsigned flags) {
    const char *fault = getenv("FAKE_NVML");
    (void)flags;
    if (fault && !strcmp(fault, "hang")) for (;;) pause();
    if (fault && !strcmp(fault, "crash")) abort();
    return fault && !strcmp(fault, "mismatch") ? MISMATCH : OK;
}
const char *nvmlErrorString(int code) {
    return code == MISMATCH ? "Driver/library version mismatch" : "Error";
}
int nvmlSystemGetDriverVersion(char *to, unsigned n) { return snprintf(to, n, "550.54.15"), OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { return *to = 12040, OK; }
int nvmlDeviceGetCount_v2(unsigned *to) { return *to = 4, OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, int **to) {
    return *to = &cards[i], i == 3 ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetUUID(int *d, char *to, unsigned n) {
    return snprintf(to, n, *d < 10 ? "GPU-%d" : "MIG-%d", *d), OK;
}
int nvmlDeviceGetName(int *d, char *to, unsigned n) {
    return snprintf(to, n, *d < 10 ? "NVIDIA Fake" : "NVIDIA Fake MIG 1g.10gb"), OK;
}
int nvmlDeviceGetPciInfo_v3(int *d, Pci *to) {
    return snprintf(to->bus_id, 32, "00000000:0%d:00.0", *d), OK;
}
int nvmlDeviceGetMemoryInfo(int *d, Memory *to) {
    to->total = (*d < 10 ? 80000 : 10000) * MIB;
    to->used = 1000 * MIB;
    return to->free = to->total - to->used, OK;
}
int nvmlDeviceGetCudaComputeCapability(int *d, int *major, int *minor) {
    (void)d;
    return *major = 9, *minor = 0, OK;
}
int nvmlDeviceGetMemoryBusWidth(int *d, unsigned *to) { (void)d; return *to = 5120, OK; }
int nvmlDeviceGetMaxClockInfo(int *d, int kind, unsigned *to) {
    (void)d;
    return *to = kind == 2 ? 2000 : 1, OK;
}
int nvmlDeviceGetUtilizationRates(int *d, unsigned *to) {
    return to[0] = 40 + *d, to[1] = 7, *d < 10 ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetTemperature(int *d, int sensor, unsigned *to) {
    (void)sensor;
    return *to = 60 + *d, *d == 1 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetPowerUsage(int *d, unsigned *to) { return *to = 123456, *d < 10 ? OK : NOT_SUPPORTED; }
int nvmlDeviceGetMaxPcieLinkGeneration(int *d, unsigned *to) { (void)d; return *to = 5, OK; }
int nvmlDeviceGetCurrPcieLinkWidth(int *d, unsigned *to) { (void)d; return *to = 16, OK; }
int nvmlDeviceGetMigMode(int *d, unsigned *now, unsigned *later) {
    *now = *later = *d == 2;
    return *d ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(int *d, unsigned *to) { (void)d; return *to = 7, OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(int *d, unsigned i, int **to) {
    (void)d;
    return i < 2 ? (*to = &slices[i], OK) : 6;
}
int nvmlDeviceGetGpuInstanceId(int *d, unsigned *to) { return *to = *d, OK; }
int nvmlDeviceGetComputeInstanceId(int *d, unsigned *to) { (void)d; return *to = 0, OK; }
int nvmlDeviceGetComputeRunningProcesses_v3(int *d, unsigned *n, Process *to) {
    if (*d) return *n = 0, OK;
    if (!to) return *n = 2, INSUFFICIENT_SIZE;
    to[0] = (Process){(unsigned)getppid(), 900 * MIB, 0, 0};
    to[1] = (Process){4194304, ~0ull, 0, 0};
    return *n = 2, OK;
}
int nvmlDeviceGetNvLinkState(int *d, unsigned link, unsigned *to) {
    return *to = *d < 2 && link < 2, *d < 2 ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(int *d, unsigned link, Pci *to) {
    (void)link;
    return snprintf(to->bus_id, 32, "00000000:0%d:00.0", 1 - *d), OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(int *d, unsigned link, unsigned *to) {
    (void)d, (void)link;
    return *to = 0, OK;
}
int nvmlDeviceGetTopologyCommonAncestor(int *a, int *b, int *to) {
    (void)a, (void)b;
    return *to = 30, OK;
}
