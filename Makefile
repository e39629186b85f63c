# Engine Room: everything a person or a machine runs in a checkout.
.PHONY: serve test test-fast properties check fuzz-api orphans bench bench-start bench-agreement bench-engines bench-gateway bench-edges bench-planner sim-routing faults soak compiled pure test-docker e2e-docker audit lock docs clean
ARGS ?=
PYTEST_ARGS ?=
N ?= 500
WORKERS ?= 2

serve: ## start everything and serve; make serve ARGS="path/to/model.gguf --port 9000"
	@sh tools/setup.sh serve
	@exec .venv/bin/engineroom serve --yes $(ARGS)

# Three passes: what starts no servers, and servers over the fake engine, side by side; real engines
# by themselves (docs/decisions/011-three-passes.md). Beside servers a test may be tried twice
# (012-second-tries.md). 5 says that no test was chosen.
_alike = tests/unit tests/contract tests/architecture
_servers = tests/integration tests/e2e tests/faults
_pytest = .venv/bin/python -m pytest
_beside = -n $(WORKERS) --dist loadfile
_twice = -p tests.repeats --reruns 1
passes = $(_pytest) $(_beside) -m "$(1) and not docker" $(PYTEST_ARGS) $(_alike) || [ $$? -eq 5 ] && \
  { $(_pytest) $(_beside) $(_twice) -m "$(1) and not docker and not real" $(PYTEST_ARGS) $(_servers) || [ $$? -eq 5 ]; } && \
  { $(_pytest) $(_twice) -m "$(1) and real" $(PYTEST_ARGS) $(_servers) || [ $$? -eq 5 ]; }

test: ## the whole suite, real engines included, less what needs Docker: WORKERS=2; or TESTS=tests/e2e/test_vllm.py
	@sh tools/setup.sh test
	@$(if $(TESTS),$(_pytest) $(_twice) -m "not docker" $(PYTEST_ARGS) $(TESTS),$(call passes,(slow or not slow)))

test-fast: ## what needs neither a real engine nor patience
	@sh tools/setup.sh test
	@$(call passes,not slow)

properties: ## every property on SHARE of its examples, of which the suite tries a quarter: SHARE=1
	@sh tools/setup.sh test
	@EXAMPLES_SHARE=$(or $(SHARE),1) .venv/bin/python -m pytest -q -n $(WORKERS) tests/unit

check: ## style, types, floors
	@sh tools/setup.sh test
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest -q tests/architecture

fuzz-api: ## every operation of the API by what its schema allows and forbids: EXAMPLES=500
	@sh tools/setup.sh test
	@SCHEMA_EXAMPLES=$(or $(EXAMPLES),500) .venv/bin/python -m pytest -q -rP tests/integration/test_schema.py

orphans: ## kill N processes of a running server one after another; nothing may be left behind
	@sh tools/setup.sh test
	@ORPHAN_KILLS=$(N) .venv/bin/python -m pytest -q -rP tests/integration/test_orphans.py

bench: ## serve the demo model and load it: ARGS="--users 4 --html report.html", see docs/how-to/benchmark.md
	@sh tools/setup.sh serve >&2
	@.venv/bin/python -m bench.load $(ARGS)

bench-start: ## start-up and first-token times of the served demo model
	@sh tools/setup.sh serve
	@.venv/bin/python bench/first_token.py

bench-agreement: ## our figures beside those of vLLM's client, in turns: VLLM=path/to/bin/vllm ARGS="--rounds 3"
	@sh tools/setup.sh test >&2
	@.venv/bin/python -m bench.agreement --vllm $(VLLM) $(ARGS)

bench-planner: ## the memory model against published figures; ROWS= MODELS= GPUS= files, JSON=1
	@sh tools/setup.sh test >&2
	@.venv/bin/python -m bench.planner $(if $(ROWS),--rows $(ROWS)) $(if $(MODELS),--models $(MODELS)) \
	  $(if $(GPUS),--gpus $(GPUS)) $(if $(JSON),--json) $(if $(DETAIL),--detail)

bench-engines: ## our plan beside the servers' own settings on one GGUF file: FILE= ROUNDS= TOKENS=
	@sh tools/setup.sh serve >&2
	@.venv/bin/python bench/engines.py $(FILE) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(TOKENS),--tokens $(TOKENS))

bench-gateway: ## the gateway beside its peers: GWBENCH=program ROUNDS= SECONDS= WORKLOADS= TARGETS=
	@sh tools/setup.sh test >&2
	@.venv/bin/python -m bench.gateway $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(WORKLOADS),--workloads $(WORKLOADS)) $(if $(TARGETS),--targets $(TARGETS)) $(if $(OUT),--json $(OUT))

bench-edges: ## clients that leave and a slow reader of 50 MB, before each of TARGETS=ours,nginx,sglang-router
	@sh tools/setup.sh test >&2
	@.venv/bin/python -m bench.gateway.edges $(if $(TARGETS),--targets $(TARGETS))

sim-routing: ## the routing policies on two workloads, 2 to 1000 replicas; writes docs/explanation/routing.md
	@sh tools/setup.sh test
	@.venv/bin/python -m bench.routing --write $(if $(SIZES),--sizes $(SIZES)) $(if $(SEED),--seed $(SEED))

faults: ## the fault matrix RUNS times with its exact bounds (a quiet machine!), and its table: RUNS=3 PYTEST_ARGS="-k fake"
	@sh tools/setup.sh test
	@for run in $$(seq $(or $(RUNS),1)); do \
	  FAULTS_SLACK=1 FAULTS_OUT=docs/reference/faults.jsonl .venv/bin/python -m pytest -q -m "docker or not docker" tests/faults $(PYTEST_ARGS) || exit 1; done
	@.venv/bin/python -m tools.fault_table

soak: ## long runs: WHAT="gateway --minutes 60" if not said, "supervisor --runs 200 --streams 50", "drains --runs 5 --engine vllm --replicas 1", "turns --minutes 5"
	@sh tools/setup.sh test
	@.venv/bin/python -m tests.faults.soak $(or $(WHAT),gateway --minutes 60)

compiled: ## the gateway's hot modules through mypyc, for this interpreter (a C compiler!); pure: back to plain Python
	@sh tools/setup.sh test
	@.venv/bin/python -m tools.compiled

pure: ## see compiled
	@sh tools/setup.sh test
	@.venv/bin/python -m tools.compiled --remove

test-docker: ## engines in containers, with a Docker Engine; one is started where dockerd is installed and this is root
	@sh tools/setup.sh test
	@sh tools/docker_engine.sh with $(_pytest) $(_twice) -m docker $(PYTEST_ARGS) tests/contract $(_servers)

e2e-docker: ## images and compose.yaml for real, likewise: COMPOSE="docker compose" E2E_COMPILE=1
	@sh tools/setup.sh test
	@sh tools/docker_engine.sh with .venv/bin/python -m pytest -q -rP -m docker tests/docker $(PYTEST_ARGS)

audit: ## known holes in what the images install, asked of an advisory service: SERVICE=pypi or osv
	@sh tools/setup.sh test
	@for list in gateway socket-proxy supervisor; do \
	  .venv/bin/uvx --quiet pip-audit@2.9.0 --strict -s $(or $(SERVICE),pypi) --disable-pip --require-hashes -r deploy/requirements/$$list.txt || exit 1; done

_lock = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: ## the exact packages of the images, anew
	@sh tools/setup.sh test
	@$(_lock) pyproject.toml -o deploy/requirements/supervisor.txt
	@$(_lock) -c deploy/requirements/supervisor.txt deploy/requirements/gateway.in -o deploy/requirements/gateway.txt
	@$(_lock) -c deploy/requirements/supervisor.txt deploy/requirements/socket-proxy.in -o deploy/requirements/socket-proxy.txt
	@$(_lock) -c deploy/requirements/supervisor.txt pyproject.toml deploy/requirements/compile.in -o deploy/requirements/compile.txt

docs: ## write the generated reference pages
	@sh tools/setup.sh serve
	@.venv/bin/python -m tools.reference

clean: ## remove what was made here; engines and state in the data directory stay
	rm -f orchestrator/*/*.so engineroom__mypyc*.so orchestrator/compiled.json
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
