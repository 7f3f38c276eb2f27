#!/usr/bin/env bash
# Installs, on Debian and as root, the services that tests run for themselves: Slurm and PostgreSQL. What is there
# already is left alone. Nothing of it is started: tests start their own, on free ports, in folders of their own.
set -euo pipefail

missing=()
for package in slurm-wlm munge postgresql; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((!${#missing[@]})); then
  echo "all are installed"
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed here: ${missing[*]} (this script installs them on Debian, as root)" >&2
  exit 1
fi
# Packages start their services when they are installed, unless this says no.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
