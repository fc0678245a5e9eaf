#!/bin/bash
# For the User Scripts plugin, on a custom schedule such as "0 3 * * 0" (Sundays at three).
# Scans two shares, one after the other, unless a parity check or the mover is at work, and notifies.
SCANNER=/mnt/cache/appdata/smart-scanner/run_smart_scan.sh # where the project was unpacked
export SMART_SCAN_DIR=/mnt/cache/appdata/nas-scanner-smart

if grep -q '^mdResyncPos="[1-9]' /var/local/emhttp/var.ini || pgrep -x mover >/dev/null; then
    echo "a parity check or the mover is at work; not today"
    exit 0
fi

for share in Media Photos; do
    "$SCANNER" scan "/mnt/user/$share" "$share"
    case $? in
    0) continue ;;
    3) subject="some of $share could not be read" level=warning ;;
    4) subject="$share does not answer" level=alert ;;
    *) subject="the scan of $share failed" level=alert ;;
    esac
    /usr/local/emhttp/webGui/scripts/notify -e "Smart Scanner" -s "$subject" -i "$level" \
        -d "$("$SCANNER" problems 2>&1 | head -n 20)"
done
