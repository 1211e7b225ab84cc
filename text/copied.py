"""How much of an answer is copied: the longest span of words that stands in a text of the training too."""

from collections.abc import Iterable


def longest_copied(answers: list[str], contents: Iterable[str]) -> list[int]:
    """Of each answer: the words of its longest span that one of `contents` holds, capitals aside.

    One pass over `contents`, a dictionary look-up a word, in the memory of the answers alone. They are made a suffix
    automaton (Blumer et al., 1985): a machine whose states are the spans of the answers. A content is read word by word
    and the machine is always in the longest span that ends at this word; what it came to is noted in the state.
    """
    texts = [answer.casefold().split() for answer in answers]
    following, shorter, length = _automaton(texts)
    met = [0] * len(length)  # words of the longest span of this state that a content holds
    for content in contents:
        state = words = 0
        for word in content.casefold().split():
            while state and word not in following[state]:
                state = shorter[state]
                words = length[state]
            if word in following[state]:
                state, words = following[state][word], words + 1
            met[state] = max(met[state], words)
    for state in sorted(range(1, len(length)), key=length.__getitem__, reverse=True):
        if met[state]:  # then each shorter span that ends it was met whole
            met[shorter[state]] = length[shorter[state]]
    return [max(_met_along(text, following, shorter, met), default=0) for text in texts]


def _met_along(text: list[str], following: list[dict[str, int]], shorter: list[int], met: list[int]) -> Iterable[int]:
    """For each word of an answer the longest span that ends with it and was met."""
    state = 0
    for word in text:
        state = ending = following[state][word]
        while ending and not met[ending]:
            ending = shorter[ending]
        yield met[ending]


def _automaton(texts: list[list[str]]) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """Of every state: where a further word leads, the state of its longest ending elsewhere, its longest span."""
    following, shorter, length = [{}], [-1], [0]

    def add(words: int, leads: dict[str, int], ending: int) -> int:
        following.append(leads)
        shorter.append(ending)
        length.append(words)
        return len(length) - 1

    def split(state: int, word: str) -> int:
        """The state behind `word` that has no longer span than `state` and the word."""
        there = following[state][word]
        if length[there] == length[state] + 1:
            return there
        copy = add(length[state] + 1, dict(following[there]), shorter[there])
        shorter[there] = copy
        while state >= 0 and following[state].get(word) == there:
            following[state][word] = copy
            state = shorter[state]
        return copy

    for text in texts:
        last = 0
        for word in text:
            if word in following[last]:  # an earlier answer begins alike
                last = split(last, word)
                continue
            new, state = add(length[last] + 1, {}, 0), last
            while state >= 0 and word not in following[state]:
                following[state][word] = new
                state = shorter[state]
            shorter[new] = split(state, word) if state >= 0 else 0
            last = new
    return following, shorter, length
