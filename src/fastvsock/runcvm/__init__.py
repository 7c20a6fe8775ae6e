"""What RunCVM needs: fastvsock installed into a bundle, and the bundle checked.

A bundle is a folder tree, `/opt/runcvm` on the node and `/.runcvm/guest` in containers and guests: `root` touches its
files, `bundle` knows what is in it and runs its tools, `package` makes what is put there, `scripts` edits its shell
scripts, `journal` knows what was there before, `install` brings these together. `check` looks for what goes wrong in
practice, `manifest` prints the Kubernetes objects that install on every node.
"""
