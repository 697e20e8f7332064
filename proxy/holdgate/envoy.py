"""Envoy as the data plane: hosts of the surface maps and a few settings in, Envoy's configuration out.

One TLS listener with a filter chain per host and no default chain; in each chain the checks of ext_authz.py,
then the upstream of that host and of no other. The values are those that make Envoy forward exactly what the
gate was shown, or nothing; each is there with its reason, and integration/test_envoy.py tries them with the
real Envoy.

What Envoy may still change in what it forwards, and no more: header names become lower case, and headers of
different names change places; several lines of one list header that Envoy knows (Accept, User-Agent ...)
come as one, to the gate too; what is framed by chunks may be framed otherwise; Host is the host of the chain.

Invariants (tests/test_envoy_config.py has one test named after each):
  EY1  Every chain asks the gate first, fails closed, and sends to the cluster of its own host only.
  EY2  A host that is not given has no chain, and no chain is the default one.
  EY3  Upstreams are spoken to in TLS, verified for the host's own name; only a loopback address that the
       configuration says has none is spoken to without.
  EY4  The token stands in the headers to the gate and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .config_values import Address
from .envoy_plan import EnvoyPlan, Upstream
from .ext_authz import PORT, SNI, SOURCE, TOKEN
from .limits import Limits

__all__ = ["bootstrap", "leaf_secret"]

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_CONNECTIONS: Final = 16  # of agents, for each request that the gate takes at once
_MORE_S: Final = 5  # how much longer Envoy waits than the gate holds
# As H1 of headers.py: what an upstream may not say. Taken out on the upstream's side; the gate's come later.
_NOT_THE_UPSTREAMS: Final = ({"prefix": "holdgate"}, {"prefix": "proxy"}, {"exact": "alt-svc"})


def bootstrap(plan: EnvoyPlan) -> dict[str, Any]:
    """Envoy's whole configuration, as JSON or YAML would have it."""
    hosts = sorted(plan.upstreams, key=lambda each: each.host)
    top: dict[str, Any] = {
        "static_resources": {
            "listeners": [_listener(plan, hosts)],
            "clusters": [_gate_cluster(plan), *(_cluster(plan, each) for each in hosts)],
        },
        "overload_manager": {"resource_monitors": [_connections(plan.limits)]},
        "node": {"id": "holdgate-envoy", "cluster": "holdgate"},
    }
    if plan.admin is not None:
        top["admin"] = {"address": _socket(plan.admin)}
    return top


def leaf_secret(host: str, key_and_chain: bytes) -> dict[str, Any]:
    """The file `HOST.yaml` in `secrets`: Envoy takes a new one when it is moved into place."""
    text = key_and_chain.decode("ascii")
    key_end = text.index("-----END PRIVATE KEY-----") + len("-----END PRIVATE KEY-----\n")
    certificate = {
        "certificate_chain": {"inline_string": text[key_end:]},
        "private_key": {"inline_string": text[:key_end]},
    }
    kind = _TYPE + "transport_sockets.tls.v3.Secret"
    return {"resources": [{"@type": kind, "name": host, "tls_certificate": certificate}]}


def _connections(limits: Limits) -> dict[str, Any]:
    """Above so many connections of agents new ones are closed; without it, memory is the limit."""
    name = "global_downstream_max_connections"
    kind = "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    most = _typed(kind, max_active_downstream_connections=_CONNECTIONS * limits.in_flight)
    return {"name": f"envoy.resource_monitors.{name}", "typed_config": most}


# --- agents' side ---


def _listener(plan: EnvoyPlan, hosts: Sequence[Upstream]) -> dict[str, Any]:
    # The destination before REDIRECT first: its port is part of which chain it is.
    filters = [("original_dst", "OriginalDst")] if plan.redirected else []
    return {
        "name": "agents",
        "address": _socket(plan.listen),
        "listener_filters": [
            {
                "name": f"envoy.filters.listener.{name}",
                "typed_config": _typed(f"filters.listener.{name}.v3.{kind}"),
            }
            for name, kind in (*filters, ("tls_inspector", "TlsInspector"))
        ],
        "listener_filters_timeout": _seconds(plan.limits.head_s),
        "continue_on_listener_filters_timeout": False,
        "per_connection_buffer_limit_bytes": max([65_536, *(each.body_bytes for each in hosts)]),
        # No default_filter_chain: a name that is not mapped, or no TLS, and the connection is closed.
        "filter_chains": [_chain(plan, each) for each in hosts],
    }


def _chain(plan: EnvoyPlan, upstream: Upstream) -> dict[str, Any]:
    match: dict[str, Any] = {"server_names": [upstream.host], "transport_protocol": "tls"}
    if plan.redirected:
        match["destination_port"] = 443
    source = {"path_config_source": {"path": str(plan.secrets / f"{upstream.host}.yaml")}}
    tls = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["http/1.1"],
        "tls_certificate_sds_secret_configs": [
            {"name": upstream.host, "sds_config": {**source, "resource_api_version": "V3"}}
        ],
    }
    return {
        "name": upstream.host,
        "filter_chain_match": match,
        "transport_socket_connect_timeout": _seconds(plan.limits.head_s),
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": _typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=tls),
        },
        "filters": [
            {
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": _manager(plan, upstream),
            }
        ],
    }


def _manager(plan: EnvoyPlan, upstream: Upstream) -> dict[str, Any]:
    limits = plan.limits
    return _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="agents",
        codec_type="HTTP1",
        # The gate judges the path that is forwarded, not one that was made of it.
        normalize_path=False,
        merge_slashes=False,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        # The peer is the agent; nothing that a request says of itself changes that or is added to it.
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        preserve_external_request_id=True,
        server_header_transformation="PASS_THROUGH",
        max_request_headers_kb=max(1, math.ceil(limits.header_bytes / 1024)),
        common_http_protocol_options={
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": limits.headers,
            "idle_timeout": _seconds(limits.idle_s),
        },
        http_protocol_options={
            "allow_absolute_url": False,
            "accept_http_10": False,
            "allow_chunked_length": False,
            "enable_trailers": False,
        },
        request_headers_timeout=_seconds(limits.head_s),
        request_timeout=_seconds(limits.head_s + limits.body_s),
        # It runs while the gate holds the request, and between two pieces of an answer.
        stream_idle_timeout=_seconds(max(limits.hold_s + 2 * _MORE_S, limits.first_byte_s)),
        route_config={"name": upstream.host, "virtual_hosts": [_routes(plan, upstream)]},
        http_filters=[_removing({"prefix": "x-envoy-"}), _ask(plan, upstream), _router()],
        access_log=[_access_log()],
    )


def _routes(plan: EnvoyPlan, upstream: Upstream) -> dict[str, Any]:
    # One upstream, whatever Host says: the gate refuses every other. No retry policy, no redirect.
    route = {
        "cluster": upstream.host,
        "host_rewrite_literal": upstream.host,
        "timeout": _seconds(plan.limits.upstream_total_s),
    }
    return {
        "name": upstream.host,
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": route}],
    }


def _ask(plan: EnvoyPlan, upstream: Upstream) -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.ext_authz",
        "typed_config": _typed(
            "filters.http.ext_authz.v3.ExtAuthz",
            transport_api_version="V3",
            failure_mode_allow=False,
            status_on_error={"code": "ServiceUnavailable"},
            clear_route_cache=False,
            # Every line of every header as it came: without this, two lines look like one with a comma.
            encode_raw_headers=True,
            allowed_headers={"patterns": [{"safe_regex": {"regex": ".*"}}]},
            with_request_body={
                "max_request_bytes": upstream.body_bytes,
                "allow_partial_message": False,
                "pack_as_bytes": True,
            },
            http_service=_gate_service(plan),
        ),
    }


def _gate_service(plan: EnvoyPlan) -> dict[str, Any]:
    said = {
        TOKEN: plan.gate.token,
        SOURCE: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        SNI: "%REQUESTED_SERVER_NAME%",
        PORT: "443",
    }
    shown = ("holdgate-decision", "holdgate-receipt", "link")
    return {
        "server_uri": {
            "uri": "http://gate",
            "cluster": _GATE,
            "timeout": _seconds(plan.limits.hold_s + _MORE_S),
        },
        "authorization_request": {
            # Over whatever an agent sent under these names.
            "headers_to_add": [{"key": key, "value": value} for key, value in said.items()]
        },
        "authorization_response": {
            "allowed_client_headers_on_success": {"patterns": [{"exact": name} for name in shown]}
        },
    }


def _removing(*matchers: Mapping[str, str]) -> dict[str, Any]:
    """The filter that takes headers out of answers."""
    mutations = [{"remove_on_match": {"key_matcher": matcher}} for matcher in matchers]
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": _typed(
            "filters.http.header_mutation.v3.HeaderMutation",
            mutations={"response_mutations": mutations},
        ),
    }


def _router() -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": _typed("filters.http.router.v3.Router", suppress_envoy_headers=True),
    }


def _access_log() -> dict[str, Any]:
    """What report.py needs, and no path, query or header of the request: those are the receipt's matter."""
    fields = {
        "time": "%START_TIME%",
        "agent": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        "host": "%REQUESTED_SERVER_NAME%",
        "decision": "%RESP(HOLDGATE-DECISION)%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "upstream_bytes_sent": "%UPSTREAM_WIRE_BYTES_SENT%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": _typed(
            "access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": fields}
        ),
    }


# --- the other sides ---

_GATE: Final = "holdgate-gate"


def _gate_cluster(plan: EnvoyPlan) -> dict[str, Any]:
    gate = plan.gate
    cluster = {
        "name": _GATE,
        "type": "STATIC",
        "connect_timeout": _seconds(plan.limits.connect_s),
        "load_assignment": _endpoint(_GATE, _socket(gate.address)),
        # Below the gate's own idle limit, so that no check goes into a connection that is being closed.
        **_http1(plan.limits.idle_s / 2),
    }
    if gate.ca_file is not None:
        files = {
            "certificate_chain": {"filename": str(gate.cert_file)},
            "private_key": {"filename": str(gate.key_file)},
        }
        cluster["transport_socket"] = _upstream_tls(gate.name, gate.ca_file, {"tls_certificates": [files]})
    return cluster


def _cluster(plan: EnvoyPlan, upstream: Upstream) -> dict[str, Any]:
    if upstream.address is None:
        where = {"socket_address": {"address": upstream.host, "port_value": 443}}
    else:
        where = _socket(upstream.address)
    cluster = {
        "name": upstream.host,
        "type": "LOGICAL_DNS" if upstream.address is None else "STATIC",
        "connect_timeout": _seconds(plan.limits.connect_s),
        "load_assignment": _endpoint(upstream.host, where),
        "circuit_breakers": {
            "thresholds": [{"max_retries": 0, "max_requests": plan.limits.in_flight}],
        },
        **_http1(plan.limits.idle_s / 2, [_removing(*_NOT_THE_UPSTREAMS), _codec()]),
    }
    if upstream.address is None:
        cluster["dns_lookup_family"] = "ALL"
    if upstream.tls:
        cluster["transport_socket"] = _upstream_tls(upstream.host, upstream.ca_file or plan.roots, {})
    return cluster


def _upstream_tls(name: str, roots: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    exactly = {"san_type": "DNS", "matcher": {"exact": name}}
    validation = {"trusted_ca": {"filename": str(roots)}, "match_typed_subject_alt_names": [exactly]}
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["http/1.1"],
        "validation_context": validation,
        **more,
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": _typed(
            "transport_sockets.tls.v3.UpstreamTlsContext", sni=name, common_tls_context=common
        ),
    }


def _codec() -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.upstream_codec",
        "typed_config": _typed("filters.http.upstream_codec.v3.UpstreamCodec"),
    }


def _http1(idle_s: float, filters: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    options: dict[str, Any] = {
        "@type": _TYPE + "upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"idle_timeout": _seconds(idle_s)},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    if filters:
        options["http_filters"] = list(filters)
    return {
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    }


def _endpoint(name: str, address: Mapping[str, Any]) -> dict[str, Any]:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def _socket(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": _TYPE + kind, **fields}


def _seconds(value: float) -> str:
    return f"{value:g}s"
