"""An observer that counts nothing, for tests that look at a part of what is told."""


class SilentObserver:
    def request(self, **values):
        pass

    def edit(self, **values):
        pass

    def retrieval(self, **values):
        pass

    def first_token(self, **values):
        pass

    def tokens(self, **values):
        pass

    def snapshot(self, **values):
        pass
