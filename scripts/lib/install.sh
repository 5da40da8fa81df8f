# For scripts that need programs: `install PACKAGE...`, where that is allowed, and fails where it is not. The script has to
# have a function `heading`.

# Debian's packages bring services along, which are of no use here: where there is an init system they are
# not started.
install() {
    local log
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 1
    heading "Installing $*"
    log=$(mktemp)
    if { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
}
