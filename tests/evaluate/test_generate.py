import random

import pytest
import torch

from forgetmenot.errors import UserError
from forgetmenot.evaluate.generate import greedy, length_batches


def never(ids):
    return False


def generate(model, prompts, batch_size, new=6, stop=never):
    return greedy(
        model, prompts, max_new_tokens=new, batch_size=batch_size, stop=stop, device="cpu"
    )


def random_prompts(lengths):
    draw = random.Random(0)
    return [[draw.randrange(10) for _ in range(length)] for length in lengths]


def test_batches_hold_similar_lengths_and_every_prompt_once():
    lengths = [3, 5, 3, 3, 5, 4, 1]
    assert length_batches(lengths, 2) == [[1, 4], [5, 0], [2, 3], [6]]
    assert length_batches(lengths, 8) == [[1, 4, 5], [0, 2, 3], [6]]
    assert length_batches(lengths, 8, spread=1) == [[1, 4], [5], [0, 2, 3], [6]]


def test_continues_through_the_state(trigram):
    prompts = random_prompts([4, 1, 4, 7])
    expected = [trigram.continuation(prompt, 6) for prompt in prompts]
    assert generate(trigram, prompts, batch_size=2) == expected


@pytest.mark.parametrize("name", ["trigram", "hybrid", "lalte", "gdn"])
def test_batch_size_and_order_do_not_matter(name, request):
    model = request.getfixturevalue(name)
    prompts = random_prompts([20, 3, 20, 11, 19, 20, 3, 15, 20, 18, 10])
    alone = generate(model, prompts, batch_size=1, new=12)
    assert generate(model, prompts, batch_size=7, new=12) == alone
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    shuffled = generate(model, [prompts[i] for i in order], batch_size=7, new=12)
    assert shuffled == [alone[i] for i in order]


def test_steps_agree_with_reading_the_whole_text_again(hybrid):
    (prompt,) = random_prompts([20])
    (new,) = generate(hybrid, [prompt], batch_size=1, new=12)
    logits_LV = hybrid(torch.tensor([prompt + new])).logits_BLV[0]
    assert logits_LV[len(prompt) - 1 : -1].argmax(-1).tolist() == new


def test_prompts_are_committed(gdn_prosg):
    prompts = random_prompts([20, 3, 17, 19])
    found = generate(gdn_prosg, prompts, batch_size=4, new=12)
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            out = gdn_prosg(torch.tensor([prompt]))
            state, new = gdn_prosg.commit_prompt(out.state), [int(out.logits_BLV[0, -1].argmax())]
            while len(new) < 12:
                out = gdn_prosg(torch.tensor([new[-1:]]), state)
                state = out.state
                new.append(int(out.logits_BLV[0, -1].argmax()))
            expected.append(new)
    assert found == expected
    base = generate(gdn_prosg.base, prompts, batch_size=4, new=12)
    assert found != base
    assert [row[0] for row in found] == [row[0] for row in base]  # from reading the prompt


def test_each_sequence_stops_on_its_own(chain):
    model = chain({"one": "two", "two": "three", "three": "four", "four": "five", "five": "six"})
    rows = generate(model, [[2], [4], [0]], batch_size=3, stop=lambda ids: ids[-1] in (6, 0))
    assert rows == [[3, 4, 5, 6], [5, 6], [0]]


def test_ends_at_the_token_limit(chain):
    assert generate(chain({"one": "one"}), [[2]], batch_size=1, new=5) == [[2] * 5]


def test_refuses_an_empty_prompt(trigram):
    with pytest.raises(UserError, match="prompt 1: found no tokens"):
        generate(trigram, [[2], []], batch_size=2)
