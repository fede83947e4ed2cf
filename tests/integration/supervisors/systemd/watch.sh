#!/bin/sh
# Watches over a throw-away system: watch.sh CGROUP ARGUMENTS-OF-BOOT. When standard input ends nothing of the system is left, and
# CGROUP, which is made here, is gone.
set -eu
cgroup=$1
shift
mkdir "$cgroup"
(
    sh -c 'echo $PPID' >"$cgroup/cgroup.procs"
    exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup \
        sh "$(dirname "$0")/boot.sh" "$@"
) &
system=$!
echo "$system"
cat >/dev/null
kill -KILL "$system" 2>/dev/null || :
wait "$system" 2>/dev/null || :
tries=0
until find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "the cgroup $cgroup could not be removed" >&2; exit 1; }
    [ ! -e "$cgroup/cgroup.kill" ] || echo 1 >"$cgroup/cgroup.kill"
    sleep 0.05
done
