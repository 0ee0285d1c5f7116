"""Mail as other programs keep it: mboxes, Maildirs, folders of files. Written, never read, for ``archive``.

=========  ============================================================================
module     its job
=========  ============================================================================
locking    a mailbox's file, locked as mailers lock it
mbox       appending to an mbox, and taking back what a death or a disk left torn
folder     a file into a folder, whole or not at all: Maildir, and files in plain folders
=========  ============================================================================
"""
