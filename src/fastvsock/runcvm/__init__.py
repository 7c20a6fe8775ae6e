"""RunCVM's integration: installs fastvsock into a bundle, and diagnoses a bundle.

A bundle is a folder tree, `/opt/runcvm` on the node and `/.runcvm/guest` in containers and guests. `bundle_files` reads
and writes its files, `bundle` finds out what it holds by running its programs, `payload` makes the files that are put
there, and `journal` keeps the originals. `script_edits`, `channel_edit` and `guest_init` edit its shell scripts, which
`shell` takes apart. `install` combines these into `changes` and makes them; `watch` installs again after an upgrade of
RunCVM. `check` finds common problems, and `manifest` prints the Kubernetes DaemonSet that installs on every node.
README.md is for users.
"""
