RUNCVM_LD=$RUNCVM_GUEST/lib/ld
function create_aliases
{
	for cmd in bash busybox awk cat tr  ; do
		if [ -x "$RUNCVM_GUEST/bin/$cmd" ]; then
			eval "$cmd() { $RUNCVM_LD $RUNCVM_GUEST/bin/$cmd \"\$@\"; }"
		fi
	done
}
create_aliases
