RUNCVM_GUEST=${RUNCVM_GUEST:-/.runcvm/guest}
RUNCVM_LD=$RUNCVM_GUEST/lib/ld
RUNCVM_PATH=$RUNCVM_GUEST/usr/sbin:$RUNCVM_GUEST/usr/bin:$RUNCVM_GUEST/sbin:$RUNCVM_GUEST/bin

which() {
  local IFS=: p
  for p in $RUNCVM_PATH; do
    if [ -x "$p/$1" ]; then echo "$p/$1"; return 0; fi
  done
  return 1
}

create_aliases() {
  for cmd in \
      bash \
      busybox awk cat cut grep head ls mkdir rm sh tr \
      jq nc socat \
      debugfs
  do
    local found
    if found=$(which "$cmd"); then
      eval "$cmd() { $RUNCVM_LD $found \"\$@\"; }"
    fi
  done
}

create_aliases
