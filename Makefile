# All commands of the project. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup build cuda mpi test python test-torch wheel cuda-wheel stores two-hosts gpu-test lint kernels bench versus profile-plants fuzz quickstart
SHELL := /bin/bash
report = "$${CARGO_TARGET_DIR:-target}/release/report"

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Install what the build needs and is missing (cmake, nasm, a C and C++ compiler)
	@scripts/setup.sh

build: setup ## Build the nepa program, optimised, into target/release/nepa
	@scripts/first-build.sh release 20
	cargo build --locked --release --workspace --bin nepa

cuda: setup ## Build nepa for NVIDIA GPUs into target/cuda/nepa; fetches the CUDA toolkit where CUDA_HOME names none
	@scripts/cuda-build.sh

mpi: setup ## Build nepa with ranks over MPI and run its tests with mpirun; installs Open MPI and libclang. scripts/mpi.sh build: optimised
	@scripts/mpi.sh

test: setup ## Build and run every test (development profile)
	@scripts/test.sh

python: setup ## Check types of the Python package and run its tests on the development build; installs numpy, pyarrow, pytest, mypy and pyright
	@scripts/python-tests.sh

test-torch: setup ## Run the Python package's tests with PyTorch, and check the types of all examples; installs 5 GB into ~/.cache
	@scripts/test-torch.sh

wheel: setup ## Build the Python package with the nepa program into target/wheels, for Linux with glibc 2.28 or newer, and test it installed
	@scripts/wheel.sh

cuda-wheel: setup ## The same with CUDA into target/wheels/cuda: device="cuda:0" of the loader, and nepa for NVIDIA GPUs
	@scripts/wheel.sh --cuda

stores: setup ## Train through moto, SeaweedFS and Azurite, and through faults of the line; installs them into ~/.cache (500 MB)
	@scripts/stores.sh

two-hosts: build ## Train on two hosts of network namespaces, and show what is seen when a rank fails there (3 minutes; Linux)
	@scripts/two-hosts.sh target/release/nepa

gpu-test: setup ## Run everything written for CUDA without a GPU, on stand-ins for NVIDIA's libraries
	@scripts/gpu-test.sh

lint: setup ## Check formatting, clippy (with and without CUDA) and that the default build is free of CUDA
	@scripts/lint.sh

kernels: ## Compile our CUDA kernels with nvcc (fetched, 120 MB, where CUDA_HOME names none) and check them
	@scripts/cuda-kernels.sh

bench: setup ## Measure decoding, loading and training; writes a report into benchmarks/results
	cargo build --locked --release --workspace --bins
	$(report) cpu

versus: setup wheel ## Race the loader and its wheel against its peers from PyPI (8 GB in ~/.cache), and measure start-up and memory; writes two reports
	cargo build --locked --release --workspace --bins
	$(report) versus
	$(report) loader

profile-plants: setup ## Does nepa profile name what was made slow, and foretell the gain? About an hour; writes a report
	cargo build --locked --release --workspace --bins
	$(report) plants

fuzz: setup ## Fuzz the decoders and the shard reader for 20 minutes each; needs a nightly Rust
	@scripts/fuzz.sh

quickstart: setup ## From nothing to a small pretrained model on rendered scenes, in ./quickstart
	@scripts/quickstart.sh
