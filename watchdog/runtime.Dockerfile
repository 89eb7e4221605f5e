# What pushed bundles run on where functions are containers: fwatchdog and a runtime, and no model. `make images` builds
# one for each runtime. Plain Dockerfile syntax: the classic builder takes it as well as BuildKit.
ARG RUNTIME_IMAGE=python:3.12-slim
ARG WATCHDOG_IMAGE=ghcr.io/faas-predict/fwatchdog:latest

FROM ${WATCHDOG_IMAGE} AS watchdog


# RUNTIME_IMAGE is Debian or a relative: with python3 and its venv module, or with Rscript.
FROM ${RUNTIME_IMAGE}

# Debian packages that bundles need at run time: libraries, compilers for pip, r-cran-NAME for R, whose packages are not
# installed when a bundle comes.
ARG ADDITIONAL_PACKAGE
RUN if [ -n "${ADDITIONAL_PACKAGE}" ]; then \
        apt-get update -qy \
        && apt-get install -qy --no-install-recommends ${ADDITIONAL_PACKAGE} \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# A number, so that Kubernetes can check runAsNonRoot; group 0 with the owner's rights, so
# that a platform that picks a user id of its own can run it too.
RUN useradd --uid 12000 --gid 0 --home-dir /home/app --no-create-home --shell /usr/sbin/nologin app \
    && mkdir -p /home/app \
    && chmod 0775 /home/app

COPY --from=watchdog /fwatchdog /usr/bin/fwatchdog

# Nothing is written outside /tmp and the volume that a bundle is fetched to, so the root file system can be read-only.
ENV HOME=/home/app \
    PYTHONDONTWRITEBYTECODE=1 \
    port=8080
USER 12000:0
EXPOSE 8080 8081
CMD ["fwatchdog"]
