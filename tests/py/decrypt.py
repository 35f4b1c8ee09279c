"""Opens objects of `mode = "client"` without Lakehead: the standard library and `cryptography`.

An object is one AES-256-GCM message. Its data key stands in the metadata `x-amz-key-v2`, wrapped by the
32 bytes of the key file: 12 bytes of nonce, then AES-256-GCM with the content cipher's name as
additional data.

    decrypt.py KEY_FILE OBJECT METADATA.json > FILE.parquet
"""

import base64
import json
import pathlib
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def lake_key(path):
    key = base64.b64decode(pathlib.Path(path).read_text().strip(), validate=True)
    assert len(key) == 32, "the key file holds 32 bytes, base64"
    return AESGCM(key)


def opened(key, body, meta):
    """The file inside an object. Fails if a single bit of it was changed."""
    assert meta["x-amz-cek-alg"] == "AES/GCM/NoPadding" and meta["x-amz-wrap-alg"] == "AES/GCM", meta
    assert meta["x-amz-tag-len"] == "128", meta
    wrapped = base64.b64decode(meta["x-amz-key-v2"])
    data_key = key.decrypt(wrapped[:12], wrapped[12:], meta["x-amz-cek-alg"].encode())
    plain = AESGCM(data_key).decrypt(base64.b64decode(meta["x-amz-iv"]), body, None)
    assert len(plain) == int(meta["x-amz-unencrypted-content-length"])
    return plain


if __name__ == "__main__":
    key_file, body, meta = sys.argv[1:]
    plain = opened(lake_key(key_file), pathlib.Path(body).read_bytes(), json.loads(pathlib.Path(meta).read_text()))
    sys.stdout.buffer.write(plain)
