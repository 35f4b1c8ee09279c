#!/usr/bin/env python3
"""AWS's own client, for what the appliance must not be able to do: make buckets, keys and users, look at
objects with other eyes, delete and alter them.

client.py ACCESS COMMAND WORDS, where ACCESS is a file with {"endpoint", "ca", "id", "secret", "token"}.
"""
import json, os, sys
import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

given = json.load(open(sys.argv[1]))
BUCKET, PREFIX = "lake", "raw"
# DESIGN: what the box's credentials need, and nothing else.
WRITES = [
    {"Effect": "Allow", "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
     "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/*"},
    {"Effect": "Allow", "Action": ["s3:ListBucketMultipartUploads"], "Resource": f"arn:aws:s3:::{BUCKET}"},
]
READS = [
    {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/*"},
    {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{BUCKET}"},
]


def client(service, who=given):
    config = Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client(
        service, endpoint_url=given["endpoint"], verify=given["ca"], region_name="eu-central-1",
        aws_access_key_id=who["id"], aws_secret_access_key=who["secret"], aws_session_token=who.get("token"),
        config=config)


def policy(statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def user(iam, name, statements):
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy(statements))
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return {"id": made["AccessKeyId"], "secret": made["SecretAccessKey"], "token": None}


def people():
    """A writing user, a reading one, a role that may write and its temporary keys, and for each of the box's
    permissions a user who lacks it."""
    iam = client("iam")
    made = {"writer": user(iam, "writer", WRITES), "reader": user(iam, "reader", READS), "without": {}}
    for at, statement in enumerate(WRITES):
        for action in statement["Action"]:
            rest = [dict(each, Action=[kept for kept in each["Action"] if kept != action]) for each in WRITES]
            rest = [each for each in rest if each["Action"]]
            name = action.split(":")[1]
            made["without"][name] = user(iam, f"without-{name}", rest)
    trust = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["sts:AssumeRole"]}
    role = iam.create_role(RoleName="box", AssumeRolePolicyDocument=policy([trust]))["Role"]["Arn"]
    iam.put_role_policy(RoleName="box", PolicyName="box", PolicyDocument=policy(WRITES))
    may = {"Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": role}
    holder = user(iam, "holder", [may])
    lent = client("sts", holder).assume_role(RoleArn=role, RoleSessionName="box")["Credentials"]
    made["role"] = {"id": lent["AccessKeyId"], "secret": lent["SecretAccessKey"], "token": lent["SessionToken"]}
    return made


def bucket(location):
    client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": location})


def keys():
    """A KMS key, and one that was switched off."""
    kms = client("kms")
    on, off = (kms.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
    kms.disable_key(KeyId=off)
    return [on, off]


def head(key):
    found = client("s3").head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    wanted = {"encryption": "ServerSideEncryption", "kms": "SSEKMSKeyId", "crc64nvme": "ChecksumCRC64NVME",
              "checksum_type": "ChecksumType", "bytes": "ContentLength", "content_type": "ContentType"}
    return {name: found.get(field) for name, field in wanted.items()}


def alter(key, text):
    client("s3").put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def delete(key):
    client("s3").delete_object(Bucket=BUCKET, Key=key)


def may(key):
    """What comes of these credentials' trying what the box has no business with."""
    s3 = client("s3")
    tries = {
        "delete": lambda: s3.delete_object(Bucket=BUCKET, Key=key),
        "get": lambda: s3.get_object(Bucket=BUCKET, Key=key),
        "list": lambda: s3.list_objects_v2(Bucket=BUCKET),
        "elsewhere": lambda: s3.put_object(Bucket=BUCKET, Key="elsewhere", Body=b"x"),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
            said[name] = "allowed"
        except ClientError as error:
            said[name] = error.response["Error"]["Code"]
    return said


def copy(folder, prefix):
    """All objects under a prefix, as files of their keys' names."""
    s3, copied = client("s3"), 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for found in page.get("Contents", []):
            path = os.path.join(folder, found["Key"])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            s3.download_file(BUCKET, found["Key"], path)
            copied += 1
    return copied


COMMANDS = {each.__name__: each for each in (people, bucket, keys, head, alter, delete, may, copy)}
_, _, command, *words = sys.argv
print(json.dumps(COMMANDS[command](*words)))
