#!/bin/bash
# LocalStack's S3, KMS, IAM and STS in the foreground: localstack.sh PYTHON HOME PORT.
# It listens on all addresses whatever it is told: enclose.sh leaves it only loopback.
# Keys of KMS are looked up, as S3 does; by default it believes any.
set -euo pipefail
python=$1 home=$2 port=$3
exec env GATEWAY_LISTEN="127.0.0.1:$port" LOCALSTACK_HOST="127.0.0.1:$port" SERVICES=s3,kms,iam,sts \
	EAGER_SERVICE_LOADING=1 DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 S3_SKIP_KMS_KEY_VALIDATION=0 \
	FILESYSTEM_ROOT="$home" HOME="$home" TMPDIR="$home" \
	"$python" -m localstack.runtime.main
