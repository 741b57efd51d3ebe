"""Files that people have: tables, JSON, texts, folders of images, by name or from the Hub."""
