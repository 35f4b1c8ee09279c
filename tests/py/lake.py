"""Reads a bucket with nothing but the standard library: list and get, signed with AWS Signature V4."""

import datetime
import hashlib
import hmac
import ssl
import urllib.parse
import urllib.request
import xml.etree.ElementTree as xml

XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class Lake:
    def __init__(self, endpoint, bucket, key, secret, region="eu-central-1", ca=None):
        self.endpoint, self.bucket, self.key, self.secret, self.region = endpoint, bucket, key, secret, region
        self.host = urllib.parse.urlsplit(endpoint).netloc
        self.tls = ssl.create_default_context(cafile=ca) if endpoint.startswith("https:") else None

    @classmethod
    def of(cls, site):
        """From the dictionary that the tests hand over."""
        return cls(site["endpoint"], site["bucket"], site["key"], site["secret"], ca=site.get("ca"))

    def request(self, path, query=()):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        uri = "/" + urllib.parse.quote(f"{self.bucket}/{path}" if path else self.bucket, safe="/-_.~")
        pairs = "&".join(f"{urllib.parse.quote(k, safe='-_.~')}={urllib.parse.quote(v, safe='-_.~')}" for k, v in sorted(query))
        empty = hashlib.sha256(b"").hexdigest()
        headers = f"host:{self.host}\nx-amz-content-sha256:{empty}\nx-amz-date:{now}\n"
        names = "host;x-amz-content-sha256;x-amz-date"
        canonical = f"GET\n{uri}\n{pairs}\n{headers}\n{names}\n{empty}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        request = urllib.request.Request(
            f"{self.endpoint}{uri}" + (f"?{pairs}" if pairs else ""),
            headers={
                "x-amz-date": now,
                "x-amz-content-sha256": empty,
                "Authorization": f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}",
            },
        )
        return urllib.request.urlopen(request, context=self.tls, timeout=60)

    def keys(self, prefix=""):
        """All keys under a prefix, in order."""
        found, token = [], None
        while True:
            query = [("list-type", "2"), ("prefix", prefix)] + ([("continuation-token", token)] if token else [])
            with self.request("", query) as answer:
                page = xml.fromstring(answer.read())
            found += [node.findtext(f"{XML}Key") for node in page.iter(f"{XML}Contents")]
            token = page.findtext(f"{XML}NextContinuationToken")
            if not token:
                return found

    def uploads(self):
        """Keys of multipart uploads that were neither completed nor aborted."""
        with self.request("", [("uploads", "")]) as answer:
            return [node.findtext(f"{XML}Key") for node in xml.fromstring(answer.read()).iter(f"{XML}Upload")]

    def get(self, key):
        """An object's bytes, and its user metadata without `x-amz-meta-`."""
        with self.request(key) as answer:
            meta = {k.lower()[11:]: v for k, v in answer.headers.items() if k.lower().startswith("x-amz-meta-")}
            return answer.read(), meta
