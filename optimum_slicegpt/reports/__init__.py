"""Reports on models: text, pictures, pages, model cards, and publishing on the Hub."""
