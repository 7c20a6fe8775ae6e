TOOLS=/.runcvm/guest
cat > /init <<-END
	#!$TOOLS/bin/sh
	LISTENER=$TOOLS/usr/bin/socat
	\$LISTENER VSOCK-LISTEN:22,fork TCP:localhost:22222 &
	echo "\$!"
	END
