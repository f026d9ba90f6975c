# Debian 12 with the executable that `just binary` builds: see docs/operations.md, "Container".
FROM debian:12-slim
COPY dist/paperdb /usr/local/bin/paperdb
RUN useradd --system paperdb && install -d -o paperdb -m 700 /data
USER paperdb
ENV PAPERDB_HOST=0.0.0.0 PAPERDB_DATA=/data XDG_CACHE_HOME=/tmp
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/paperdb"]
CMD ["serve"]
