#!/usr/bin/env python3
"""Writes Envoy's configuration and the leaf certificates for the hosts of a gate's surface maps.

    python deploy/envoy/generate.py -c gate.yaml --token-file envoy.token --listen 0.0.0.0:8443 --out envoy

Run it again, daily: leaves live for seven days, and Envoy takes new ones without a restart. Exit code 2 and
one line for whatever is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml

from holdgate.adapters.ca import LeafMaker, load_ca
from holdgate.adapters.private_file import read_private, write_new
from holdgate.config import Address, Config, ConnectTo, load_config
from holdgate.envoy import bootstrap, leaf_secret
from holdgate.envoy_plan import EnvoyPlan, GateSide, Upstream
from holdgate.errors import ConfigError
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps


def main() -> int:
    args = _arguments()
    try:
        config = load_config(args.config)
        index = SurfaceIndex.compile(load_maps(tuple(args.surfaces) or config.surfaces))
        hosts, left_out = _hosts(index, args.host)
        plan = _plan(args, config, [_upstream(config, index, host) for host in hosts])
        _write(args.out, config, plan)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for pattern in left_out:
        print(f"left out, and so refused: {pattern}", file=sys.stderr)
    print(f"{args.out / 'envoy.yaml'}: {len(hosts)} hosts", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path = {"type": Path, "metavar": "FILE"}
    parser.add_argument(
        "-c", "--config", default=Path("holdgate.yaml"), help="the gate's holdgate.yaml", **path
    )
    parser.add_argument("--token-file", required=True, help="the token of a decider, mode 0600", **path)
    parser.add_argument("--listen", type=_address, required=True, metavar="ADDRESS", help="for agents' TLS")
    parser.add_argument(
        "--redirected", action="store_true", help="agents are redirected: their port must be 443"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where envoy.yaml and secrets/ go"
    )
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="a name for a pattern of a map"
    )
    parser.add_argument(
        "--surfaces", action="append", default=[], help="maps, if not the configuration's", **path
    )
    parser.add_argument(
        "--roots", default=Path("/etc/ssl/certs/ca-certificates.crt"), help="public CAs", **path
    )
    parser.add_argument(
        "--admin", type=_address, metavar="ADDRESS", help="Envoy's admin listener; default: none"
    )
    parser.add_argument("--gate", type=_address, metavar="ADDRESS", help="default: ext_authz.listen")
    parser.add_argument("--gate-name", default="", metavar="NAME", help="in the gate's certificate")
    for name in ("--gate-ca", "--client-cert", "--client-key"):
        parser.add_argument(name, help="TLS to the gate", **path)
    return parser.parse_args()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    address = Address(host=host.strip("[]"), port=int(port))
    address.ip  # noqa: B018  (raises ValueError for what is no address)
    return address


def _hosts(index: SurfaceIndex, named: list[str]) -> tuple[list[str], list[str]]:
    """Names to have a chain, and what of the maps has none."""
    hosts, left_out = set(named), []
    for name in named:
        if not index.is_mapped(name, 443, "https"):
            raise ConfigError(f"--host {name}: no map has this https host on port 443")
    for pattern in index.hosts():
        if (pattern.scheme, pattern.port) != ("https", 443):
            left_out.append(f"{pattern.scheme}://{pattern.host}:{pattern.port} (https on port 443 only)")
        elif "{" in pattern.host:
            left_out.append(f"{pattern.host} (name the hosts that agents use with --host)")
        else:
            hosts.add(pattern.host)
    if not hosts:
        raise ConfigError("no map has an https host on port 443")
    return sorted(hosts), left_out


def _upstream(config: Config, index: SurfaceIndex, host: str) -> Upstream:
    limits = config.limits
    body = index.body_limit(host, 443, "https", default=limits.body_bytes, cap=limits.body_bytes_max)
    entry = _connect_to(config.upstream.connect_to, host)
    if entry is None:
        return Upstream(host=host, body_bytes=body, address=None)
    ca_file = config.upstream.ca_file
    return Upstream(host=host, body_bytes=body, address=entry.address, tls=entry.tls, ca_file=ca_file)


def _connect_to(entries: tuple[ConnectTo, ...], host: str) -> ConnectTo | None:
    """The exact entry, or the one of the longest suffix."""
    found = [each for each in entries if each.port == 443 and (each.name == host or _covers(each.name, host))]
    return max(found, key=lambda each: (each.name == host, len(each.name)), default=None)


def _covers(name: str, host: str) -> bool:
    return name.startswith("*.") and host.endswith(name[1:])


def _plan(args: argparse.Namespace, config: Config, upstreams: list[Upstream]) -> EnvoyPlan:
    if config.ext_authz is None:
        raise ConfigError(
            "add `ext_authz: {listen: 127.0.0.1:9191}`: the gate does not answer Envoy", file=str(config.path)
        )
    gate = GateSide(
        address=args.gate or config.ext_authz.listen,
        token=read_private(args.token_file, "the token").decode("utf-8").strip(),
        name=args.gate_name,
        ca_file=args.gate_ca,
        cert_file=args.client_cert,
        key_file=args.client_key,
    )
    return EnvoyPlan(
        listen=args.listen,
        redirected=args.redirected,
        gate=gate,
        upstreams=upstreams,
        limits=config.limits,
        secrets=args.out.absolute() / "secrets",
        roots=args.roots,
        admin=args.admin,
    )


def _write(out: Path, config: Config, plan: EnvoyPlan) -> None:
    leaves = LeafMaker(load_ca(config.state_dir))
    plan.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
    for upstream in plan.upstreams:
        secret = leaf_secret(upstream.host, leaves.pem(upstream.host))
        _replace(plan.secrets / f"{upstream.host}.yaml", yaml.safe_dump(secret))
    _replace(out / "envoy.yaml", yaml.safe_dump(bootstrap(plan), sort_keys=False))


def _replace(path: Path, text: str) -> None:
    """Complete and private under another name, then moved: Envoy looks for moves."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    write_new(new, text.encode(), 0o600)
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
