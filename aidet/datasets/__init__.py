"""Where the images are and what is known of them: one reader of folders, tables and lists, labels, training sets."""
