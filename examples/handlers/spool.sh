#!/bin/sh
# A program for orgstream's `exec` handler in plain POSIX sh: puts each event into a file of its own.
#
#     [[subscription.handler]]
#     type = "exec"
#     command = ["sh", "examples/handlers/spool.sh", "spool"]
#
# An event may come again after a crash, with the same `id`: then it is the same file. To look into an
# event, pipe "$line" through jq; for the id alone there is no need of it, because every line begins with
# {"specversion":"1.0","id":"…" and the id has no character that JSON escapes.

folder=${1:-spool}

# Standard output is for answers alone. Write all else to standard error: it goes to orgstream's log.
answer() { printf '{"id":"%s",%s}\n' "$id" "$1"; }

# True once the event is kept for good: never half of it, and not before it is on the disk.
handle() {
    new="$folder/.$id.$$"
    mkdir -p "$folder" && printf '%s\n' "$line" >"$new" && sync "$new" && mv "$new" "$folder/$id.json" &&
        sync "$folder"
}

# Standard input ends when orgstream stops or is gone, and with it this program. Half a line, whose writer
# is gone, ends the loop too: the event comes again.
while IFS= read -r line; do
    id=${line#*'"id":"'}
    id=${id%%'"'*}
    case $line in
    *'"data":{'*)
        if handle; then
            answer '"ok":true'
        else
            rm -f "$new"
            answer '"retry":"cannot write to the folder: see the log"'
        fi
        ;;
    *) answer '"reject":"the event has no data"' ;;
    esac
done
