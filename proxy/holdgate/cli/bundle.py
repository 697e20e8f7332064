"""`holdgate bundle`: policies that are only taken when enough people signed them. See policies/README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..adapters.activation import read_mark, read_roots
from ..adapters.bundle_build import (
    build,
    gather,
    make_policy_key,
    read_policy_key,
    read_public_key,
    sign_folder,
    write_folder,
)
from ..adapters.bundle_folder import read_folder
from ..adapters.bundle_load import load_signed
from ..adapters.bundle_store import kept_signed
from ..adapters.control import ask
from ..adapters.durable import replace_file
from ..adapters.open_reader import has_ledger, open_reader
from ..config import Config
from ..config_bundle import Signed
from ..errors import ConfigError
from ..gate import ENGINE
from ..manifest import (
    BundleRejected,
    Manifest,
    encode_signatures,
    parse_manifest,
    parse_signatures,
    sign_manifest,
)
from ..signed_bundle import Mark, RawBundle, check_signed
from ..trust_roots import Link, Roots, current_roots, encode_chain, next_link, parse_chain, sign_link
from .shared import Commands, add, config_of, group, print_json, say, whole_number

__all__ = ["register"]

_YEAR_9999_S: Final = 253_402_300_799
_DAY_S: Final = 86_400
_DAYS: Final = 30


def register(commands: Commands) -> None:
    bundle = group(
        commands,
        "bundle",
        does="build, sign, verify, activate and roll back signed policy bundles",
        example="holdgate bundle build --out release-7 && holdgate bundle sign release-7 --key me.key",
    )
    _register_keys(bundle)
    _register_making(bundle)
    _register_use(bundle)


def _register_making(bundle: Commands) -> None:
    building = add(
        bundle,
        "build",
        _build,
        does="load, lint and test the configured maps and policies, and write them as an unsigned bundle",
        example="holdgate bundle build --out release-7 --days 30",
        data=True,
    )
    building.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist yet")
    building.add_argument("--name", default="policies", help="for people (default: policies)")
    building.add_argument("--warn", action="store_true", help="lint findings do not stop it")
    _window(building)
    signing = add(
        bundle,
        "sign",
        _sign,
        does="add signatures to a bundle",
        example="holdgate bundle sign release-7 --key alice.key",
        config=False,
    )
    signing.add_argument("dir", type=Path, metavar="DIR")
    signing.add_argument("--key", type=Path, action="append", required=True, metavar="FILE")


def _register_use(bundle: Commands) -> None:
    verifying = add(
        bundle,
        "verify",
        _verify,
        does="check a bundle as a node would: signatures, files, validity, revision, tests",
        example="holdgate bundle verify release-7 --trust trust.json",
        data=True,
    )
    verifying.add_argument("dir", type=Path, metavar="DIR")
    verifying.add_argument("--trust", type=Path, metavar="FILE", help="default: bundle.trust of -c FILE")
    activating = add(
        bundle,
        "activate",
        _activate,
        does="verify a bundle, put it into bundle.dir and have the running process take it",
        example="holdgate bundle activate release-7",
        data=True,
    )
    activating.add_argument("dir", type=Path, metavar="DIR")
    rolling = add(
        bundle,
        "rollback",
        _rollback,
        does="write the content of an earlier bundle with a higher revision; then activate it as any other",
        example="holdgate bundle rollback --to sha256:9f2c... --out back-to-6 --key alice.key",
        data=True,
    )
    rolling.add_argument("--to", required=True, metavar="DIGEST", help="a bundle that was active here")
    rolling.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist yet")
    rolling.add_argument("--key", type=Path, action="append", default=[], metavar="FILE", help="signs it too")
    _window(rolling)


def _register_keys(bundle: Commands) -> None:
    making = add(
        bundle,
        "keygen",
        _keygen,
        does="make a key that signs bundles: FILE (private) and FILE.pub",
        example="holdgate bundle keygen alice.key",
        config=False,
    )
    making.add_argument("file", type=Path, metavar="FILE")
    trusting = add(
        bundle,
        "trust",
        _trust,
        does="write the trust roots, or their next version; earlier keys sign later versions",
        example="holdgate bundle trust trust.json --key alice.key.pub --key bob.key.pub --threshold 2",
        config=False,
        data=True,
    )
    trusting.add_argument("file", type=Path, metavar="FILE", help="made when it is not there")
    trusting.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.pub",
        help="all keys of the new version; without any, --sign adds to the newest version",
    )
    trusting.add_argument("--threshold", type=whole_number, metavar="M", help="how many of them must sign")
    trusting.add_argument(
        "--new-epoch", action="store_true", help="revisions begin again: after a key was lost to somebody"
    )
    trusting.add_argument(
        "--sign", type=Path, action="append", default=[], metavar="FILE", help="a key of the version before"
    )


def _window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", type=whole_number, help="default: one more than this node has taken")
    parser.add_argument("--epoch", type=whole_number, help="default: that of the trust roots")
    parser.add_argument("--not-before", metavar="TIME", help="RFC 3339; default: now")
    parser.add_argument("--days", type=whole_number, default=_DAYS, help=f"validity (default: {_DAYS})")


# --- keys and trust roots ---


def _keygen(args: argparse.Namespace) -> int:
    public = make_policy_key(args.file)
    print(f"wrote {args.file} (keep it private) and {args.file}.pub\nkey {public.kid}")
    return 0


def _trust(args: argparse.Namespace) -> int:
    links = list(parse_chain(args.file.read_bytes())) if args.file.exists() else []
    if args.key:
        keys = [read_public_key(path) for path in args.key]
        links.append(next_link(links, keys, args.threshold or len(keys), new_epoch=args.new_epoch))
    elif not links:
        raise ConfigError("there is no such file; name its keys with --key FILE.pub", file=str(args.file))
    for path in args.sign:
        links[-1] = sign_link(links[-1], read_policy_key(path))
    try:
        replace_file(args.file, encode_chain(links))
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", file=str(args.file)) from error
    _print_roots(args, links)
    return 0


def _print_roots(args: argparse.Namespace, links: Sequence[Link]) -> None:
    roots = links[-1].roots
    try:
        current_roots(links, None)
        missing = ""
    except BundleRejected as error:
        missing = error.detail
    if args.json:
        print_json(
            {
                "version": roots.version,
                "epoch": roots.epoch,
                "threshold": roots.threshold,
                "keys": sorted(roots.keys),
                "digest": roots.digest,
                "missing": missing,
            }
        )
        return
    print(f"version {roots.version}, epoch {roots.epoch}: {roots.threshold} of {len(roots.keys)} keys")
    for kid in sorted(roots.keys):
        print(f"  {kid}")
    if missing:
        print(f"not complete yet: {missing}; `holdgate bundle trust {args.file} --sign FILE` adds one")


# --- bundles ---


def _build(args: argparse.Namespace) -> int:
    config = config_of(args)
    if not config.surfaces or not config.policies:
        message = "name `surfaces` and `policies`: what a bundle is built from"
        raise ConfigError(message, file=str(config.path))
    files = gather(config.surfaces, config.policies)
    raw, findings = build(files, name=args.name, **_manifest_fields(args, config))
    beside = sys.stderr if args.json else sys.stdout  # what reads JSON reads nothing else
    for each in findings:
        say(each, file=beside)
    if findings and not args.warn:
        print("not built: --warn builds it all the same", file=beside)
        return 1
    write_folder(raw, args.out)
    _print_bundle(args, raw, {"dir": str(args.out)})
    return 0


def _manifest_fields(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    mark, roots = _mark(config), _roots_or_none(config)
    begins = int(time.time()) if args.not_before is None else _time_s(args.not_before)
    epoch = args.epoch if args.epoch is not None else roots.epoch if roots else 1
    if (ends := begins + args.days * _DAY_S) > _YEAR_9999_S:
        raise ConfigError(f"--days {args.days}: it would end after the year 9999")
    follows = mark.revision if mark is not None and mark.epoch == epoch else 0
    return {
        "epoch": epoch,
        "revision": args.revision if args.revision is not None else follows + 1,
        "profile": ENGINE,
        "not_before_s": begins,
        "not_after_s": ends,
        "previous": mark.digest if mark is not None else "",
    }


def _sign(args: argparse.Namespace) -> int:
    raw = read_folder(args.dir)
    manifest = parse_manifest(raw.manifest)
    signatures = sign_folder(raw, args.dir, [read_policy_key(path) for path in args.key])
    print(f"{raw.digest}  {_described(manifest)}")
    for key_id in sorted({each.key_id for each in signatures}):
        print(f"signed by {key_id}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    config = None if args.trust is not None and not args.config.exists() else config_of(args)
    if args.trust is not None:
        roots = read_roots(args.trust, None)
    elif config is not None and isinstance(config.bundle, Signed):
        roots = read_roots(config.bundle.trust, None)
    else:
        raise ConfigError("whose signatures? name --trust FILE, or configure `bundle: {mode: signed, ...}`")
    try:
        raw = read_folder(args.dir)
        mark = _mark(config) if config is not None else None
        manifest = check_signed(raw, roots, now_s=int(time.time()), mark=mark)
        load_signed(raw, manifest, tested=False)
    except BundleRejected as error:
        return _refused(args, error)
    _print_bundle(args, raw, {"ok": True})
    return 0


def _activate(args: argparse.Namespace) -> int:
    config = config_of(args)
    if not isinstance(config.bundle, Signed):
        raise ConfigError("`bundle: {mode: files}`: there is nothing to activate", file=str(config.path))
    try:
        raw = read_folder(args.dir)
        now_s = int(time.time())
        manifest = check_signed(raw, read_roots(config.bundle.trust, None), now_s=now_s, mark=_mark(config))
        load_signed(raw, manifest, tested=False)
    except BundleRejected as error:
        return _refused(args, error)
    place = config.bundle.folder / f"{manifest.epoch}-{manifest.revision}-{raw.digest[7:19]}"
    if not place.exists():
        write_folder(raw, place)
    said = ask(config.state_dir, {"ask": "reload"})
    if said is None:
        _print_bundle(args, raw, {"dir": str(place), "active": False})
        if not args.json:
            print("nothing runs here: `holdgate run` takes it when it starts")
        return 0
    is_active = said["digest"] == raw.digest
    _print_bundle(args, raw, {"dir": str(place), "active": is_active, "refused": said["refused"]})
    if not args.json:
        print("active" if is_active else f"NOT active: {'; '.join(said['refused'])}")
    return 0 if is_active else 1


def _rollback(args: argparse.Namespace) -> int:
    config = config_of(args)
    old = kept_signed(config.state_dir, args.to)
    fields = _manifest_fields(args, config)
    raw, _ = build(old.files, name=parse_manifest(old.manifest).name, **fields)
    signatures = [sign_manifest(raw.manifest, read_policy_key(path)) for path in args.key]
    signed = encode_signatures(signatures) if signatures else None
    raw = RawBundle(name=raw.name, manifest=raw.manifest, signatures=signed, files=raw.files)
    write_folder(raw, args.out)
    _print_bundle(args, raw, {"dir": str(args.out), "to": args.to})
    return 0


# --- what is shown ---


def _refused(args: argparse.Namespace, error: BundleRejected) -> int:
    if args.json:
        print_json({"ok": False, "reason": error.reason.value, "detail": error.detail})
    else:
        say(f"refused: {error}")
    return 1


def _print_bundle(args: argparse.Namespace, raw: RawBundle, more: dict[str, Any]) -> None:
    manifest = parse_manifest(raw.manifest)
    signed = [] if raw.signatures is None else sorted(s.key_id for s in parse_signatures(raw.signatures))
    if args.json:
        row = json.loads(raw.manifest)
        row["files"] = len(row["files"])
        print_json({"digest": raw.digest, **row, "signed_by": signed, **more})
        return
    print(f"{raw.digest}  {_described(manifest)}")
    for key_id in signed:
        print(f"signed by {key_id}")


def _described(manifest: Manifest) -> str:
    until = datetime.fromtimestamp(manifest.not_after_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    which = f"{manifest.name} revision {manifest.revision} of epoch {manifest.epoch}"
    return f"{which}, {len(manifest.files)} files, until {until}"


def _mark(config: Config) -> Mark | None:
    if not has_ledger(config):
        return None
    with open_reader(config) as reader:
        return read_mark(reader)


def _roots_or_none(config: Config) -> Roots | None:
    if not isinstance(config.bundle, Signed) or not config.bundle.trust.exists():
        return None
    return read_roots(config.bundle.trust, None)


def _time_s(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--not-before {text}: write it as 2026-12-01T00:00:00Z") from None
    return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp())
