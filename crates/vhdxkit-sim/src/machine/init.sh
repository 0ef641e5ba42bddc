#!/bin/busybox sh
# The guest's only program. It does what its console tells it, one line each, and says when that is done.
# Lines that begin with @ are for the host; everything else on the console is for people.
/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "@BROKEN cannot load $module"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 300 ]; do
    usleep 100000
    tries=$((tries + 1))
done
data=/mnt/data
echo "@READY"

# FRESH and OPTIONS come from the kernel's command line.
if [ "$FRESH" = 1 ]; then
    /sbin/mkfs.ext4 -q -F /dev/vda && sync -f /dev/vda && echo "@MADE" || echo "@BROKEN cannot make a file system"
fi
# This replays the journal.
mount -t ext4 -o "$OPTIONS" /dev/vda /mnt || echo "@BROKEN cannot mount"
[ -d $data ] || { mkdir $data && sync -f /mnt; } || echo "@BROKEN cannot make a folder"
for path in $data/*; do
    [ -e "$path" ] || continue
    sum=$(md5sum <"$path") && echo "@FOUND ${path##*/} ${sum%% *}" || echo "@BROKEN cannot read $path"
done
umount /mnt || echo "@BROKEN cannot unmount"
/sbin/e2fsck -fn /dev/vda >/tmp/report 2>&1
code=$?
[ $code = 0 ] || cat /tmp/report
echo "@FSCK $code"
mount -t ext4 -o "$OPTIONS" /dev/vda /mnt || echo "@BROKEN cannot mount again"
echo "@VERIFIED"

put() { # FILE SKIP COUNT, and more for dd
    file=$1 skip=$2 count=$3
    shift 3
    dd if=/blob "of=$file" bs=4096 "skip=$skip" "count=$count" "$@" 2>/tmp/why
}

obey() { # VERB FILE SKIP COUNT SEEK
    case $1 in
        write) put "$data/$2" "$3" "$4" conv=fsync && sync $data ;;
        replace) put "$data/.$2" "$3" "$4" conv=fsync && mv "$data/.$2" "$data/$2" && sync $data ;;
        patch) put "$data/$2" "$3" "$4" conv=notrunc,fsync "seek=$5" ;;
        loose) put "$data/$2" "$3" "$4" ;;
        delete) rm -f "$data/$2" && sync $data ;;
        trim) fstrim /mnt ;;
        sync) sync -f /mnt ;;
        *) false ;;
    esac
}

while read -r id verb file skip count seek; do
    : >/tmp/why
    if obey "$verb" "$file" "$skip" "$count" "$seek"; then
        echo "@DONE $id"
    else
        echo "@FAILED $id $verb $(cat /tmp/why)"
    fi
done
echo "@BROKEN the console has ended"
poweroff -f
