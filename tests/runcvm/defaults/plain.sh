create_aliases () {
  for   tool   in bash	busybox	awk cat tr
  do
    if [ -x "$RUNCVM_GUEST/bin/$tool" ]; then eval "$tool() { $RUNCVM_GUEST/lib/ld $RUNCVM_GUEST/bin/$tool \"\$@\"; }"; fi
  done
}
create_aliases
