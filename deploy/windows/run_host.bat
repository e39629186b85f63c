@echo off
rem Engine Room as a quick prototype: weights of 4 bits.
rem   run_host.bat [MODEL] [options of `engineroom serve`]
rem BASE_MODEL, ADAPTER_PATH, FORCE_BACKEND, HOST and PORT mean what they mean on Linux.
rem Engines are watched by means of the Linux kernel, so this runs in WSL 2, with llama.cpp or PyTorch:
rem vLLM is not offered on Windows.
setlocal enableextensions
where wsl.exe >nul 2>nul
if errorlevel 1 (
  echo engineroom: WSL 2 is missing: run "wsl --install" as administrator, then see docs/how-to/run-elsewhere.md 1>&2
  exit /b 69
)
if "%FORCE_BACKEND%"=="" set "FORCE_BACKEND=llama_server"
set "KNOWN="
for %%E in (llama_server llama_cpp pytorch) do if /i "%FORCE_BACKEND%"=="%%E" set "KNOWN=1"
if not defined KNOWN (
  echo engineroom: FORCE_BACKEND %FORCE_BACKEND% is not offered here; choose one of: llama_server llama_cpp pytorch 1>&2
  exit /b 78
)
set "WSLENV=BASE_MODEL:ADAPTER_PATH/p:HOST:PORT:ALLOW_ANONYMOUS:ENGINEROOM_API_KEYS:HF_TOKEN:%WSLENV%"
wsl.exe --shell-type login engineroom serve %* --engine %FORCE_BACKEND% --quantization 4bit --yes
exit /b %ERRORLEVEL%
