# ptune and everything it runs on; docs/docker.md shows how to use it.
#
#   docker build -t ptune .                             cards from Turing (7.5) on, or no card
#   docker build -t ptune:p100 --build-arg P100=1 .     P100, GTX 10, V100

ARG P100=0

# The wheels of torch bring their own CUDA libraries.  So the smallest CUDA image is enough: beside
# the distribution it holds what lets cards of data centres run on a somewhat older driver, and the
# check of the driver at start.  `runtime` would add gigabytes of libraries that torch has already.
# Each is of the CUDA release that its torch was built with.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS p100-0
FROM nvidia/cuda:12.6.3-base-ubuntu24.04 AS p100-1
# One of the two stages above, whose tags are there.
# hadolint ignore=DL3006
FROM p100-${P100}

# Triton compiles its launcher with a C compiler and Python's headers at run time.  The distribution
# keeps only the newest patch of a package, so a pinned one would break the build some day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# User 1000 is whom most files outside belong to; in this distribution the name `ubuntu` has it.
# The folders are open to all, so that `docker run --user` may name anybody.
RUN userdel --remove ubuntu \
    && useradd --uid 1000 --home-dir /cache --no-create-home ptune \
    && install --directory --owner ptune --group ptune --mode 1777 /cache /models /output

ENV VIRTUAL_ENV=/opt/ptune
ENV PATH=$VIRTUAL_ENV/bin:$PATH
RUN python3 -m venv "$VIRTUAL_ENV"

# What changes least comes first: torch (gigabytes), the other packages, ptune itself.
WORKDIR /src
COPY constraints.txt ./
ARG P100
# The newest torch with code for sm_60 that pip finds without another index.
ARG TORCH_P100=2.7.1
ARG PIP_EXTRA_INDEX_URL
RUN if [ "$P100" = 1 ]; then \
        sed -i "s/^torch==.*/torch==$TORCH_P100/" constraints.txt; \
    fi
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt torch

COPY pyproject.toml ./
# ptune's packages with those of `ptune serve --web`, which ask for ptune itself, too, and `ptune tune`.
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
asked = [*project["dependencies"], *extras["serve"], *extras["web"], *extras["tune"]]; \
print(*(name for name in asked if not name.startswith("ptune[")), sep="\n")' > requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md ./
COPY ptune ptune
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps . \
    && rm -rf build ptune.egg-info

# HOME and USER also hold for `--user` with a number that has no name.  The caches of the hub, of
# ptune and of Triton, and the chat's history, all lie in /cache.
ENV HOME=/cache \
    USER=ptune \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /output
VOLUME ["/models", "/output", "/cache"]
ENTRYPOINT ["ptune"]
CMD ["--help"]
