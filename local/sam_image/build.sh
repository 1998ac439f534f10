#!/usr/bin/env bash
# Builds a stand-in for AWS's Lambda image of Python 3.13 from this machine's own Python 3.13, for where the real one cannot be pulled.
# Linux only; takes a few seconds. Usage: build.sh PYTHON TAG   (PYTHON: a python3.13 with pip)
#
# What it has in common with the real one: the interpreter's place, the order of sys.path, the runtime interface client, the
# environment. What it lacks: Amazon Linux. A native library that is missing there would not be missed here.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=$1
tag=$2
ric=awslambdaric==4.2.2
machine=$(uname -m)
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,etc/ssl/certs,usr/bin,usr/local/bin,usr/lib/ssl,lib,root,proc,sys,dev,opt,var/task,var/rapid,var/lang,var/runtime}
mkdir -m 1777 "$root/tmp"

# The interpreter, without what no function imports.
tar -C "$prefix" -c --exclude='*/test' --exclude='*/config-3.13-*' --exclude='*/idlelib' --exclude='*/tkinter' --exclude='*/turtledemo' \
  --exclude='*/ensurepip' --exclude='*/site-packages/*' --exclude='*/dist-packages/*' --exclude='_tkinter*' --exclude='_test*' \
  --exclude='*.a' bin/python3.13 lib/python3.13 | tar -C "$root/var/lang" -x
ln -s python3.13 "$root/var/lang/bin/python3"
ln -s python3.13 "$root/var/lang/bin/python"

# A shell, and what the Dockerfile that SAM generates runs.
for program in bash sh mv cp rm chmod ls cat mkdir env; do
  cp -L "$(command -v "$program")" "$root/bin/"
done
ln -s /bin/env "$root/usr/bin/env"

# Every shared library these need, where the loader looks for it, and those that wheels and name look-ups ask for.
libraries() {
  { find "$root/bin" "$root/var/lang" -type f \( -perm -u+x -o -name '*.so*' \) -exec ldd {} + 2>/dev/null || true; } |  # scripts fail
    awk '/=> \//{print $3} /ld-linux/{print $1}'
  ldconfig -p | awk -v machine="$machine" '/lib(nss_files|nss_dns|resolv|gcc_s|stdc\+\+|pthread|dl|rt|util)\.so\.[0-9]/ && $NF ~ machine {print $NF}'
}
libraries | sort -u | while read -r library; do
  if [[ $library == "$prefix"/lib/* ]]; then
    install -D "$library" "$root/var/lang/lib/${library##*/}"
  else
    install -D "$(readlink -f "$library")" "$root/$library"
  fi
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
ln -s /etc/ssl/certs "$root/usr/lib/ssl/certs"
echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

"$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$root/var/runtime" "$ric"
install -m 755 "$here/bootstrap" "$root/var/runtime/bootstrap"
install -m 644 "$here/bootstrap.py" "$root/var/runtime/bootstrap.py"
install -m 755 "$here/lambda-entrypoint.sh" "$root/lambda-entrypoint.sh"

tar -C "$root" --numeric-owner --owner=0 --group=0 -c . | docker import \
  --change 'ENV LANG=en_US.UTF-8' \
  --change 'ENV PATH=/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin' \
  --change 'ENV LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib' \
  --change 'ENV LAMBDA_TASK_ROOT=/var/task' \
  --change 'ENV LAMBDA_RUNTIME_DIR=/var/runtime' \
  --change 'WORKDIR /var/task' \
  --change 'ENTRYPOINT ["/lambda-entrypoint.sh"]' \
  - "$tag" >/dev/null
