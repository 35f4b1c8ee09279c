#!/usr/bin/env python3
"""Proves a Lakehead raw zone from its ledger without Lakehead: standard library and `cryptography`.

The bucket is a folder with one file per key (`aws s3 sync s3://BUCKET FOLDER`).
Exit code 0: proven. 1: the second line names the first broken entry or object. 2: wrong usage.
"""
import argparse, base64, hashlib, json, os, re, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

arguments = argparse.ArgumentParser(description=__doc__)
for name in ("folder", "source"):
    arguments.add_argument(name)
arguments.add_argument("keys", nargs="+", help="public keys, PEM")
arguments.add_argument("--prefix", default="")
arguments.add_argument("--head", default="0:", help="ENTRY:HASH that somebody remembers")
arguments.add_argument("--deep", action="store_true", help="compare contents, not only lengths")
given = arguments.parse_args()
known, known_hash = int(given.head.split(":")[0]), given.head.split(":")[1]
KEYS = [load_pem_public_key(open(path, "rb").read()).public_bytes_raw() for path in given.keys]
KINDS = ("snapshot", "changes", "schema", "gap", "repair", "fence")
HEIR = re.compile(rb'"adopts":{"public_key":"([0-9A-Za-z+/=]{44})"')
ZERO = {"sequence": 0, "position": "00000000/00000000"}


def signed(key, body, signature):
    try:
        return Ed25519PublicKey.from_public_bytes(key).verify(signature, body) is None
    except (InvalidSignature, ValueError):
        return False


def judge(number, raw, chain):
    """What is wrong with an entry, or None: then the chain has it."""
    try:
        body, line2, rest = raw.split(b"\n")
        signature, heir = base64.b64decode(line2, validate=True), HEIR.search(body)
        signer = next((key for key in KEYS if signed(key, body, signature)), None)
        if not signer:  # what was not signed is not parsed
            is_fence = heir and not rest and signed(base64.b64decode(heir[1]), body, signature)
            return "ForeignEntry" if is_fence else "EntryAltered"
        entry = json.loads(body)
        source, kind, start, end = (entry[field] for field in ("source", "kind", "from", "to"))
        assert not rest and kind in KINDS
    except (ValueError, KeyError, TypeError, AssertionError):
        return "EntryAltered"
    adopts, last, reached = entry.get("adopts") or {}, chain["hash"], chain.get("reached")
    heir, before = base64.b64decode(adopts.get("public_key", "")), chain["signers"]
    owner = heir if kind == "fence" else before[-1] if before else signer
    comes_back = kind == "fence" and signer in before[:-1] and signer != before[-1]
    if kind in ("changes", "gap"):  # these tile the log; text order of positions is log order
        joins, reached = reached in (None, start) and all(start[f] <= end[f] for f in ZERO), end
    else:
        joins = start == end == (reached or ZERO)
    digest, system = hashlib.sha256(body).hexdigest(), source["system_identifier"]
    for damage, found in (
        ("ForeignEntry", source["name"] != given.source or system != chain.get("system", system)),
        ("EntriesSwapped", entry["entry"] != number),
        ("ChainBroken", entry["previous"] != last),
        ("ForeignEntry", signer != owner or comes_back or kind == "fence" and adopts["head"] != last),
        ("NotTiling", not joins),
        ("ChainBroken", number == known and digest != known_hash),
    ):
        if found:
            return damage
    chain["entries"].append(entry)
    chain["signers"].append(signer)
    chain.update(hash=digest, system=system, reached=reached)


def look(proof, seen):
    """What is wrong with an object that an entry names, or None."""
    path, twice = os.path.join(given.folder, proof["key"]), proof["key"] in seen
    seen.add(proof["key"])
    if twice or not os.path.isfile(path):
        return "ObjectTwice" if twice else "ObjectMissing"
    altered = os.path.getsize(path) != proof["bytes"]
    if altered or given.deep and hashlib.file_digest(open(path, "rb"), "sha256").hexdigest() != proof["sha256"]:
        return "ObjectAltered"


ledger = os.path.join(given.prefix, "_ledger", given.source, "")
folder, chain = os.path.join(given.folder, ledger), {"hash": "0" * 64, "entries": [], "signers": []}
seen, damage, objects = set(), None, 0
names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
for name in (name for name in names if len(name) == 25 and name.endswith(".json")):
    number, due = int(name[:20]), len(chain["entries"]) + 1
    damage = judge(number, open(folder + name, "rb").read(), chain) if number == due else "EntryMissing"
    if damage:
        break
proven = chain["entries"]
if not damage and len(proven) < max(known, 1):
    damage = "TailTruncated" if known else "EntryMissing"
broken = damage and f"{damage} entry {len(proven) + 1} {ledger}{len(proven) + 1:020}.json"
for entry in proven:
    found = sorted((proof["key"], kind) for proof in entry["objects"] if (kind := look(proof, seen)))
    if found:
        broken, proven = f"{found[0][1]} entry {entry['entry']} {found[0][0]}", proven[: entry["entry"] - 1]
        break
    objects += len(entry["objects"])
to = proven[-1]["to"] if proven else {}
print(f"{given.source}:", "PROVEN up to {position} (change {sequence}):".format(**to) if to else "nothing is proven:",
      f"{len(proven)} entries, {objects} objects")
if broken:
    sys.exit(print(f"{given.source}: {broken}") or 1)
