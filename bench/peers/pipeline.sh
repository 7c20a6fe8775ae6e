#!/bin/sh
# The first transport of RunCVM, told again: three socats and a shell. The outer two only carry bytes to and from the
# one that knows the socket, so that the shell can say CONNECT before them and take the answer off behind them.
# `read` takes one byte at a time from a pipe, and so no payload with it.
{ printf 'CONNECT %s\n' "$2"; exec socat -u STDIN STDOUT; } |
    socat STDIO "UNIX-CONNECT:$1" |
    { read -r answer && [ "${answer%% *}" = OK ] && exec socat -u STDIN STDOUT; }
