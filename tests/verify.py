#!/usr/bin/env python3
"""Proves a Lakehead raw zone from its ledger, without Lakehead: the standard library and `cryptography`.

The bucket is a local folder with one file per key (`aws s3 sync s3://BUCKET FOLDER`).
Exit code 0: proven. 1: the second line names the first broken entry or object. 2: wrong usage.
"""
import argparse, base64, hashlib, json, os, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("folder")
arguments.add_argument("source")
arguments.add_argument("keys", nargs="+", help="public keys, PEM")
arguments.add_argument("--prefix", default="")
arguments.add_argument("--head", help="ENTRY:HASH that somebody remembers")
arguments.add_argument("--deep", action="store_true", help="compare contents, not only lengths")
given = arguments.parse_args()
known, known_hash = (given.head or "0:").split(":")
KEYS = [serialization.load_pem_public_key(open(path, "rb").read()) for path in given.keys]
ZERO = {"sequence": 0, "position": "00000000/00000000"}
ledger = (given.prefix + "/" if given.prefix else "") + f"_ledger/{given.source}/"


def signed_by(key, body, signature):
    try:
        key.verify(signature, body)
        return base64.b64encode(key.public_bytes_raw()).decode()
    except InvalidSignature:
        return None


def judge(number, path, chain, named):
    """What is wrong with the entry, or None; what it adds goes to `chain` and `named`."""
    try:
        body, line2, rest = open(path, "rb").read().split(b"\n")
        entry, signature = json.loads(body), base64.b64decode(line2, validate=True)
        assert rest == b"" and entry["kind"] in KINDS and entry["to"]["position"] and entry["source"]["name"]
    except (ValueError, AssertionError, KeyError, TypeError):
        return "EntryAltered"
    system = entry["source"]["system_identifier"]
    if entry["source"]["name"] != given.source or system != chain.setdefault("system", system):
        return "ForeignEntry"
    signer = next(filter(None, (signed_by(key, body, signature) for key in KEYS)), None)
    adopts = entry.get("adopts") or {}
    if not signer:
        heir = base64.b64decode(adopts.get("public_key", ""))
        foreign = len(heir) == 32 and signed_by(Ed25519PublicKey.from_public_bytes(heir), body, signature)
        return "ForeignEntry" if foreign else "EntryAltered"
    if entry["entry"] != number:
        return "EntriesSwapped"
    if entry["previous"] != chain["hash"]:
        return "ChainBroken"
    owner = adopts.get("public_key") if entry["kind"] == "fence" else chain.get("signer", signer)
    if signer != owner or entry["kind"] == "fence" and adopts.get("head") != chain["hash"]:
        return "ForeignEntry"
    start, end, reached = entry["from"], entry["to"], chain.get("reached")
    if entry["kind"] in ("changes", "gap"):  # text order of positions is log order
        joins = reached in (None, start) and all(start[field] <= end[field] for field in start)
        chain["reached"] = end
    else:
        joins = start == end == (reached or ZERO)
    if not joins:
        return "NotTiling"
    chain.update(hash=hashlib.sha256(body).hexdigest(), signer=signer)
    if number == int(known) and known_hash != chain["hash"]:
        return "ChainBroken"
    named.append((number, entry))


def look(object, names):
    """What is wrong with an object that an entry names, or None."""
    path = os.path.join(given.folder, object["key"])
    if object["key"] in names:
        return "ObjectTwice"
    names.add(object["key"])
    if not os.path.isfile(path):
        return "ObjectMissing"
    if os.path.getsize(path) != object["bytes"]:
        return "ObjectAltered"
    if given.deep and hashlib.file_digest(open(path, "rb"), "sha256").hexdigest() != object["sha256"]:
        return "ObjectAltered"


KINDS = ("snapshot", "changes", "schema", "gap", "repair", "fence")
chain, named, names, damage, objects = {"hash": "0" * 64}, [], set(), None, 0
folder = os.path.join(given.folder, ledger)
files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
for number, name in ((int(name[:20]), name) for name in files if len(name) == 25 and name.endswith(".json")):
    kind = "EntryMissing" if number != len(named) + 1 else judge(number, folder + name, chain, named)
    if kind:
        damage = (kind, len(named) + 1, f"{ledger}{len(named) + 1:020}.json")
        break
else:
    if len(named) < max(1, int(known)):
        kind = "TailTruncated" if given.head and int(known) else "EntryMissing"
        damage = (kind, len(named) + 1, f"{ledger}{len(named) + 1:020}.json")
for index, (number, entry) in enumerate(named):
    found = sorted((o["key"], kind) for o in entry["objects"] if (kind := look(o, names)))
    if found:
        damage, named = (found[0][1], number, found[0][0]), named[:index]
        break
    objects += len(entry["objects"])
point = named[-1][1]["to"] if named else None
proven = f"PROVEN up to {point['position']} (change {point['sequence']})" if named else "nothing is proven"
print(f"{given.source}: {proven}: {len(named)} entries, {objects} objects")
if damage:
    sys.exit(print("{}: {} entry {} {}".format(given.source, *damage)) or 1)
