#!/bin/sh
# Becomes PID 1 of a throw-away system: boot.sh STAGE ROOT USR [SOURCE TARGET]…
# Runs as root in fresh mount, pid, uts, ipc, net and cgroup namespaces, in a cgroup of its own. STAGE is an empty directory. The
# system is laid over the directory ROOT, its /usr over USR above ROOT's own where that is not empty; nothing is ever written to
# either. Each SOURCE is bound at TARGET inside; one that begins with ro: can't be written there.
set -eu
stage=$1 lower=$2 usr=$3
shift 3

mount -t tmpfs -o mode=0755 stage "$stage" # an upper directory inside the lower one is refused
mkdir "$stage/upper" "$stage/work" "$stage/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$stage/upper,workdir=$stage/work" overlay "$stage/root"
root=$stage/root
if [ "$usr" ]; then # not as one more layer of the root, which may be what contains it: refused, too
    mkdir "$stage/upper-usr" "$stage/work-usr"
    mount -t overlay -o "lowerdir=$usr:${lower%/}/usr,upperdir=$stage/upper-usr,workdir=$stage/work-usr" overlay "$root/usr"
fi
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 dev "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=0755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=0755 init.d "$root/etc/init.d" 2>/dev/null || mkdir -p "$root/etc/init.d"
rm -f "$root/etc/machine-id" # an empty one would be asked for on the console
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
while [ $# -gt 1 ]; do
    source=${1#ro:}
    if [ -d "$source" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$(dirname "$root$2")"
        [ -e "$root$2" ] || : >"$root$2"
    fi
    mount --bind "$source" "$root$2"
    [ "$source" = "$1" ] || mount -o remount,bind,ro "$root$2"
    parent=$(dirname "$root$2")
    while [ "$parent" != "$root" ]; do # for services that don't run as root
        chmod a+x "$parent" 2>/dev/null || :
        parent=$(dirname "$parent")
    done
    shift 2
done
cd "$root"
pivot_root . .
umount -l .
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal-or-kmsg --show-status=no </dev/null
