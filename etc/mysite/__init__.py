"""The default site's own code: what a site adds to the stock runners."""
