# Recipes; each works in a fresh clone. `just` alone lists them.
python := ".venv/bin/python"

_default:
    @just --list

_venv:
    @test -x {{python}} || python3 -m venv .venv
    @{{python}} -m pip install -q -e '.[test]'

# Serve ./paperdb-data on port 8000.
serve *options: _venv
    .venv/bin/paperdb serve {{options}}

# The whole test suite.
test *options: _venv
    {{python}} -m pytest -n auto {{options}}

# The whole test suite, against servers with two workers; but for what measures a single process.
test-workers *options: _venv
    {{python}} -m pytest -n auto --workers 2 --ignore tests/stress/test_short.py {{options}}

# The suites of REST, realtime and both SDKs, against servers that store in Debian's PostgreSQL.
test-postgres *options: _venv
    {{python}} -m pytest -n auto --store postgres {{options}}

# What tests do in a browser, in Firefox. Needs Debian's firefox-esr (153), or a newer Firefox.
test-firefox *options: _venv
    {{python}} -m pytest -n auto --browser firefox tests/web {{options}}

# How much of `paperdb_trio` the tests run, in their own process and in the servers' that they start.
coverage *options: _venv
    @{{python}} -m pip install -q -e '.[coverage]'
    {{python}} -m coverage erase
    {{python}} -m coverage run -m pytest -n auto {{options}}
    {{python}} -m coverage combine -q
    {{python}} -m coverage report --skip-covered --sort=cover

# The README's lines in bare roots of Debian 12 and 13, with the whole test suite. Needs root.
fresh:
    .ci/fresh bookworm all
    .ci/fresh trixie all

# Lint, format, strict types.
lint: _venv
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy

# The benchmarks; `just bench fanout rest --quick` runs some of them, quickly.
bench *options: _venv
    {{python}} -m bench {{options}}

# The benchmarks beside other servers that are installed (docs/performance.md shows how).
bench-peers *options: _venv
    {{python}} -m bench peers rest {{options}}

# Long proof: SIGKILL at 200 random moments.
crash *options: _venv
    {{python}} -m tests.stress.crash {{options}}

# A cluster on this machine: PostgreSQL, Patroni, etcd, HAProxy and two PaperDB nodes (examples/cluster/README.md).
cluster *options: _venv _patroni
    {{python}} examples/cluster/cluster.py {{options}}

# Long proof: kills, stops and cuts off the machines of such a cluster at random; `just crash-cluster --kills 20`.
crash-cluster *options: _venv _patroni
    {{python}} -m tests.stress.cluster {{options}}

# Debian's Python: PostgreSQL's user must be able to run it.
_patroni:
    @test -x .venv-patroni/bin/patroni || /usr/bin/python3 -m venv .venv-patroni
    @.venv-patroni/bin/pip install -q -r examples/cluster/requirements.txt

# Long proof: thousands of subscribers resume while writes pour in.
storm *options: _venv
    {{python}} -m tests.stress.storm {{options}}

# Long proof: 1,000 readers that never read.
slow *options: _venv
    {{python}} -m tests.stress.slow {{options}}

# Long proof: the write-ahead log stays short although reads always overlap; `just wal --seconds 600`.
wal *options: _venv
    {{python}} -m tests.stress.wal {{options}}

# Attack: heads of one byte per second, too many connections, unfinished handshakes.
loris *options: _venv
    {{python}} -m tests.stress.loris {{options}}

# Attack: clients that never read.
deaf *options: _venv
    {{python}} -m tests.stress.deaf {{options}}

# Attack: bodies that are slow for their size, floods of small frames, and how long other clients wait meanwhile.
heavy *options: _venv
    {{python}} -m tests.stress.heavy {{options}}

# Attack: mutated inputs against the parsers in memory, and against a server; `just fuzz --inputs 1000000 --tls`.
fuzz *options: _venv
    {{python}} -m tests.fuzz {{options}}

# HTTP/2 conformance by h2spec, if it is installed; `just h2spec http2/6.5` for one section.
h2spec *options: _venv
    {{python}} -m tests.conformance.h2spec {{options}}

# Long proof of the SDKs: kills, cuts in mid-frame, expiring tokens.
soak *options: _venv
    {{python}} -m tests.web.soak {{options}}
    {{python}} -m tests.client.soak {{options}}

# Long proof of the SDKs: hundreds of subscriptions at once.
storm-sdks *options: _venv
    {{python}} -m tests.stress.sdks {{options}}

# The dashboard in Chromium over a million documents: seconds until the first row.
dashboard-million *options: _venv
    {{python}} -m tests.web.million {{options}}

# The dashboard's inspector with 5,000 connections: seconds until each question is answered.
dashboard-crowd *options: _venv
    {{python}} -m tests.web.crowd {{options}}

# A wheel for this platform with compiled modules, dist/*.whl; `pip install .` is pure Python.
wheel: _venv
    @{{python}} -m pip install -q -e '.[binary]'
    {{python}} binary/compiled.py wheel

# The tests against compiled modules, in a copy of the checkout: build/compiled.
test-compiled *options: _venv
    @{{python}} -m pip install -q -e '.[binary]'
    {{python}} binary/compiled.py checkout build/compiled
    cd build/compiled && PYTHONPATH=$PWD {{justfile_directory()}}/{{python}} -m pytest -n auto {{options}}

# One executable for Linux, dist/paperdb, that needs no Python.
binary: _venv
    @{{python}} -m pip install -q -e '.[binary]'
    {{python}} binary/build.py

# The executable's size, start and memory.
measure: binary
    {{python}} binary/measure.py dist/paperdb .venv/bin/paperdb
