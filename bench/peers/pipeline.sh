#!/bin/sh
# The first transport of RunCVM, rewritten: three socats and a shell. The outer two only carry bytes to and from the
# one that holds the socket, so that the shell can write CONNECT before the input and read the answer before the output.
# `read` takes one byte at a time from a pipe, and so no payload.
{ printf 'CONNECT %s\n' "$2"; exec socat -u STDIN STDOUT; } |
    socat STDIO "UNIX-CONNECT:$1" |
    { read -r answer && [ "${answer%% *}" = OK ] && exec socat -u STDIN STDOUT; }
