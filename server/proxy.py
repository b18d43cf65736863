"""The proxy, nginx: the one door to the centre. TLS ends here, and only two things are behind it.

`/v1/fleet/` is Flower's interface for sites; SiteWatch is open to sites with a certificate of our authority.
A request is passed on only if its path, as it came over the wire, is one of a short list: nginx compares a
tidied path with `location` but passes the untidied one on, so that `/v1/control/%2e%2e/fleet/x` would pass.
"""

import os
import shutil
from dataclasses import dataclass

from dsan_daemon.files import PRIVATE, write_atomically
from dsan_daemon.processes import Program
from server.centre import Centre, ServerConfig
from server.refusals import ExitCode, RefusedError
from server.superlink import LOOPBACK

LARGEST_UPLOAD = "16m"  # of one request: more than PIECE_BYTES of dsan_daemon/flower.py
MOST_REQUESTS = 64  # at a time from one address, as nginx keeps a body before anybody's key is looked at;
# a SuperNode sends two pieces at a time, and several hospitals may share an address

_CONFIGURATION = """\
# Written by dsan-server at every start; changes are lost.
daemon off;
pid "{folder}/nginx.pid";
error_log stderr warn;
worker_processes auto;
worker_shutdown_timeout 10s;  # after a reload: a revoked site's open stream ends with the old workers
{user}
events {{ worker_connections 1024; }}

http {{
    server_tokens off;
    default_type application/octet-stream;
    client_body_temp_path "{folder}/body";
    proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/unused";
    uwsgi_temp_path "{folder}/unused";
    scgi_temp_path "{folder}/unused";

    map $status $is_refused {{ ~^[45] 1; default 0; }}
    log_format refused '$time_iso8601 $remote_addr "$request" $status certificate=$ssl_client_verify';
    access_log "{folder}/refused.log" refused if=$is_refused;

    ssl_certificate "{tls}/server.crt";
    ssl_certificate_key "{tls}/server.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off;    # a resumed session would not look at the list of revoked certificates
    ssl_session_tickets off;
    ssl_client_certificate "{tls}/ca.crt";
    ssl_crl "{tls}/crl.pem";
    ssl_verify_client optional;
    ssl_verify_depth 1;
    map $ssl_client_s_dn $dsan_site {{ "~^CN=(?<name>[A-Za-z0-9][A-Za-z0-9-]*)$" $name; default ""; }}

    limit_conn_zone $binary_remote_addr zone=address:1m;

    upstream superlink {{
        server {superlink};
        keepalive 32;
        keepalive_timeout 3s;  # shorter than the SuperLink's own 5 s
    }}

    server {{
        listen {listen} ssl http2;
        error_page 495 496 = @refused;  # a certificate that is none of ours, or revoked

        location / {{ return 404; }}
        location @refused {{ return 403; }}

        location /v1/fleet/ {{
            if ($request_uri !~ "^/v1/fleet/[a-z-]+$") {{ return 404; }}
            if ($request_method !~ "^(GET|POST)$") {{ return 404; }}  # sites knock with GET
            client_max_body_size {largest_upload};
            limit_conn address {most_requests};
            client_body_timeout 300s;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_connect_timeout 10s;
            proxy_read_timeout 300s;
            proxy_send_timeout 300s;
            proxy_pass http://superlink;
        }}

        location /dsan.watch.v1.SiteWatch/ {{
            if ($request_uri != "/dsan.watch.v1.SiteWatch/Watch") {{ return 404; }}
            if ($ssl_client_verify != SUCCESS) {{ return 403; }}
            if ($dsan_site = "") {{ return 403; }}
            client_max_body_size 0;   # a stream of days is one body
            client_body_timeout 300s;
            grpc_set_header x-dsan-site $dsan_site;
            grpc_set_header x-dsan-proxy {secret};
            grpc_connect_timeout 10s;
            grpc_read_timeout 24h;    # the centre may have no order for days
            grpc_send_timeout 300s;
            grpc_socket_keepalive on;
            grpc_pass grpc://{site_watch};
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Behind:
    """What the proxy passes requests on to, by ports of loopback, and how it proves itself there."""

    superlink_port: int
    site_watch_port: int
    secret: str  # tells SiteWatch that a request came through the proxy


def write_proxy(centre: Centre, config: ServerConfig, behind: Behind) -> Program:
    """Write nginx's configuration into state/nginx; returns the program. RefusedError PROXY-MISSING."""
    folder = centre.state / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    write_atomically(configuration, proxy_configuration(centre, config, behind).encode(), PRIVATE)
    command = (nginx_program(config), "-p", str(folder), "-c", str(configuration), "-e", "stderr")
    return Program("nginx", command, os.environ, centre.state / "logs" / "nginx.log")


def proxy_configuration(centre: Centre, config: ServerConfig, behind: Behind) -> str:
    """nginx's configuration as text."""
    return _CONFIGURATION.format(
        folder=centre.state / "nginx",
        tls=centre.tls,
        user="user root;" if os.geteuid() == 0 else "",  # else its workers could not read our folder
        listen=f"{f'[{config.listen}]' if ':' in config.listen else config.listen}:{config.port}",
        superlink=f"{LOOPBACK}:{behind.superlink_port}",
        site_watch=f"{LOOPBACK}:{behind.site_watch_port}",
        secret=behind.secret,
        largest_upload=LARGEST_UPLOAD,
        most_requests=MOST_REQUESTS,
    )


def nginx_program(config: ServerConfig) -> str:
    """The path of nginx; Debian keeps it in a folder that is on the PATH of root only."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(config.nginx, path=folders)
    if found is None:
        raise RefusedError(
            "PROXY-MISSING",
            "server.toml, key nginx",
            f"there is no program {config.nginx!r}; nothing is served to sites without the proxy",
            "Install it (Debian: `apt install nginx-light`), or give its path.",
            ExitCode.BAD_CONFIGURATION,
        )
    return found
