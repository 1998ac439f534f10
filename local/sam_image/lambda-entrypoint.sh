#!/bin/sh
# As in AWS's image: under the runtime emulator when nothing else offers the runtime API.
if [ $# -ge 1 ]; then export _HANDLER="$1"; fi
if [ -z "${AWS_LAMBDA_RUNTIME_API}" ]; then
  exec /usr/local/bin/aws-lambda-rie /var/runtime/bootstrap
fi
exec /var/runtime/bootstrap
