def download(url, path):
    raise NotImplementedError
