# Two stages on the same base, so that the virtual environment keeps its path and its Python; the second one gets
# nothing else: no build tools, no uv, no cache, and no embedded Postgres (set BSKT_DATABASE_URL).
FROM python:3.13-slim AS builder
WORKDIR /src
COPY . .
RUN ops/install.sh /opt/bskt

FROM python:3.13-slim
COPY --from=builder /opt/bskt /opt/bskt
ENV PATH=/opt/bskt/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    BSKT_LISTEN=0.0.0.0:9464
# A number, not a name: Kubernetes' runAsNonRoot can verify it, and no account has to be made.
USER 65532:65532
WORKDIR /tmp
EXPOSE 9464
# A claim that runs is finished before the process ends: give `docker stop` more time than its 10 s (compose.yaml: 120 s).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/livez', timeout=4)"]
ENTRYPOINT ["bskt"]
CMD ["run"]
