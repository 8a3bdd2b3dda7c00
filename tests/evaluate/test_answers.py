"""What replies say, read in one place. `replies.tsv` is a table of replies with the right reading of each."""

from pathlib import Path

import pytest

from langdc.evaluate.answers import normalise, number
from langdc.evaluate.choices import choice


def table() -> list[tuple[int, list[str], str, str]]:
    """Line, options ([] where a number is asked), right reading and reply of each line of `replies.tsv`."""
    found, options = [], list[str]()
    for place, line in enumerate(Path(__file__).with_name("replies.tsv").read_text("utf-8").splitlines(), 1):
        if line.startswith("options: ") or line == "number:":
            options = line.removeprefix("options: ").split(" | ") if line != "number:" else []
        elif line and not line.startswith("#"):
            right, reply = line.split("\t")
            found.append((place, options, right, reply.replace("⏎", "\n")))
    return found


@pytest.mark.parametrize(("line", "options", "right", "reply"), table())
def test_every_reply_of_the_table(line: int, options: list[str], right: str, reply: str) -> None:
    if options:
        assert choice(reply, options) == (None if right == "-" else right)
    else:
        assert number(reply) == (None if right == "-" else pytest.approx(float(right)))


def test_the_table_is_large() -> None:
    assert len(table()) >= 200


ANIMALS = ["a cat", "a dog", "A horse", "two dogs"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A)", "A"), ("A.", "A"), ("a", "A"), ("A", "A"), (" b ", "B"), ("**C**", "C"), ("D)", "D"), ("B: a dog", "B"),
        ("Answer: B because the dog barks", "B"), ("The answer is (C).", "C"), ("the correct option is D", "D"),
        ("answer: a dog", "B"), ("a dog", "B"), ("A dog.", "B"), ("A horse", "C"), ("two dogs", "D"),
        ("I see two dogs.", "D"), ("It is a cat", "A"), ("I think it is (B), a dog", "B"), ("B\n", "B"),
        ("B, I think", "B"),
        ("The best answer is:\n\nA", "A"), ("<answer>C</answer>", "C"),
        ("", None), ("   ", None), ("A or B", None), ("A, B", None), ("(A) and (B)", None), ("E", None),
        ("a cat and a dog", None), ("no idea", None), ("A bird flies", None), ("?", None),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str | None) -> None:
    assert choice(text, ANIMALS) == letter


SCENES = ["a red car", "a blue car", "a dog runs", "a man sits"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option C is wrong because there is no dog. The correct answer is B.", "B"),
        ("<think>Option A says red car. It could be (A). But no.</think>\n\nB", "B"),
        ("Option A? It could be (A). But no.</think>\n\nThe answer is B", "B"), ("<think>It could be (A)", None),
        ("The answer is option B", "B"), ("The correct answer is choice C", "C"), ("Answer: Option C", "C"),
        ("The answer is letter D", "D"), ("I would choose B", "B"), ("So D is correct.", "D"),
        ("Based on the video, D is the best fit", "D"), (r"\boxed{B}", "B"),
        (r"The final answer is $\boxed{\text{B}}$.", "B"),
        ("答案：B", "B"), ("正确答案为（C）。", "C"), ("我选B", "B"), ("The answer is not A. It is B.", "B"),
        ("A is wrong. B is right.", "B"), ("The answer is (B), not (C).", "B"), ("**Answer:** B", "B"),
        ("The answer is B or C", None), ("I first thought the answer is A, but the answer is B", "B"),
        ("(A) is incorrect; (D) fits", "D"), ("A isn't right, so B", "B"), ("Final Answer\nB", "B"),
        ("The answer to the question is therefore C", "C"), ("The answer is a dog runs", "C"),
        ("I think the answer is A because the car is red", "A"),
        ("Therefore, the correct answer is:\n\nB. a blue car", "B"),
        ("The answer is B. Option A is wrong.", "B"), ("B is correct, A is not", "B"), ("I'd go with D", "D"),
    ],
)  # fmt: skip
def test_letters_in_sentences(text: str, letter: str | None) -> None:
    assert choice(text, SCENES) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option C is wrong because there is no dog, so B.", "B"), ("C is wrong. The answer must be B", "B"),
        ("C cannot be right. B it is.", "B"), ("It's not A, it's B.", "B"), ("It isn't (A). It's (B).", "B"),
        ("Not A, but B.", "B"), ("Not A. B.", "B"), ("Definitely not C. I'd say B.", "B"), ("I'd say B.", "B"),
        ("I would say that B is the answer.", "B"), ("I think B", "B"), ("I think it's B.", "B"),
        ("I believe the answer is B", "B"), ("My answer is B.", "B"), ("My answer: B", "B"),
        ("My final answer is option (B).", "B"), ("The answer could be A, but I think it is B.", "B"),
        ("The answer might be A at first glance, however the correct one is B.", "B"), ("The correct one is B.", "B"),
        ("The right choice here is B.", "B"), ("The correct option here would be B.", "B"),
        ("The best option among the given choices is B.", "B"),
        ("Among the options, B best describes the video.", "B"), ("B best describes the video.", "B"),
        ("Option B.", "B"), ("Option B", "B"), ("option b", "B"), ("Choice B is correct", "B"), ("Choice (B)", "B"),
        ("Letter B", "B"), ("B. a blue car", "B"), ("b. a blue car", "B"), ("b) a blue car", "B"),
        ("B) a blue car", "B"), ("[B]", "B"), ("{B}", "B"), ("'B'", "B"), ("\"B\"", "B"), ("`B`", "B"),
        ("**B**. a blue car", "B"), ("**B.** a blue car", "B"), ("*B*", "B"), ("__B__", "B"),
        ("**(B)** a blue car", "B"), ("**The answer is: B**", "B"), ("**Answer: (B)**", "B"), ("### Answer\nB", "B"),
        ("Answer\n\nB", "B"), ("# Final answer: B", "B"), ("Answer - B", "B"), ("Answer – B", "B"),
        ("Answer => B", "B"), ("Answer→B", "B"), ("Answer is B", "B"), ("answer B", "B"), ("Answer B", "B"),
        ("The answer is\n\nB", "B"), ("The answer is **B**", "B"), ("The answer is *B*.", "B"),
        ("The answer is: **B. a blue car**", "B"), ("The answer is \"B\".", "B"), ("the answer is 'B'", "B"),
        ("The answer is `B`.", "B"), ("The answer is B, a blue car", "B"), ("The answer is b", "B"),
        ("the answer is (b)", "B"), (r"$\boxed{\textbf{B}}$", "B"), (r"\boxed{(B)}", "B"),
        (r"\boxed{B. a blue car}", "B"), (r"\boxed{\text{(B) a blue car}}", "B"),
        (r"The answer is A. Wait, no. \boxed{B}", "B"), (r"\boxed{A} is what I thought, but \boxed{B}", "B"),
        (r"\boxed{\mathbf{B}}", "B"), (r"\boxed{\mathrm{B}}", "B"), (r"\boxed{ \text{ B } }", "B"),
        (r"\fbox{B}", "B"), (r"\boxed B", "B"), (r"\boxed{\text{Option B}}", "B"), (r"\(\boxed{B}\)", "B"),
        (r"\[\boxed{B}\]", "B"), ("<think>A? B? It could be (A).</think>B", "B"),
        ("<think>A</think>\n<answer>B</answer>", "B"), ("<answer>B</answer>", "B"), ("<answer> (B) </answer>", "B"),
        ("<thinking>So the answer is A.</thinking>The answer is B", "B"),
        ("<reasoning>A</reasoning><answer>B</answer>", "B"), ("<Think>the answer is A</Think>B", "B"),
        ("<thought>the answer is A</thought>B", "B"), ("◁think▷the answer is A◁/think▷B", "B"),
        ("[THINK]the answer is A[/THINK]B", "B"), ("<|begin_of_thought|>the answer is A<|end_of_thought|>B", "B"),
        ("<seed:think>answer is A</seed:think>B", "B"), ("<scratchpad>answer is A</scratchpad>B", "B"),
        ("<analysis>answer is A</analysis>B", "B"), ("<think>The answer is A", None),
        ("<think>answer: A</think>", None), ("答案是B", "B"), ("答案为B。", "B"), ("正确答案是 B。", "B"), ("选B", "B"),
        ("我选择B", "B"), ("我选择选项B。", "B"), ("应该选B", "B"), ("选项B", "B"),
        ("B选项正确", "B"), ("答案：（B）", "B"),
        ("答案是选项B", "B"), ("A是错的，答案是B", "B"), ("不是A，是B", "B"), ("不选A，选B", "B"),
        ("答案不是A，而是B", "B"), ("Ｂ", "B"),
        ("（Ｂ）", "B"), ("Réponse : B", "B"), ("Antwort: B", "B"), ("Respuesta: B", "B"), ("Ответ: B", "B"),
        ("答え：B", "B"), ("정답: B", "B"), ("The answer isn't A; it's B.", "B"), ("The answer is not A but B.", "B"),
        ("The answer is not (A), it is (B)", "B"), ("The answer cannot be A, so it must be B.", "B"),
        ("A is not correct. C is not correct. D is not correct. Therefore B.", "B"),
        ("A, C and D are wrong, so B.", "B"), ("A, C, and D are incorrect. B is the answer.", "B"),
        ("Neither A nor C. The answer: B", "B"), ("Options A and C are wrong. B", "B"),
        ("It can't be A or C. B fits best.", "B"), ("I can rule out A, C and D. Hence B.", "B"),
        ("We eliminate A and C. Between B and D, B is better.", "B"), ("B is better than D.", "B"),
        ("B rather than A", "B"), ("B, not A", "B"), ("B instead of A", "B"),
        ("Rather than A, the answer is B.", "B"),
        ("A is incorrect, because the car is blue. So the answer is B.", "B"),
        ("At first I thought A. But it's B.", "B"), ("I initially chose A, but the answer is B.", "B"),
        ("I chose A at first, then I picked B", "B"), ("I would pick B over A.", "B"), ("I'd go for B.", "B"),
        ("I go with B", "B"), ("I'll go with option B", "B"), ("Going with B.", "B"), ("Let's go with B", "B"),
        ("I opt for B", "B"), ("I'm choosing B", "B"), ("I would select option B.", "B"), ("I select (B).", "B"),
        ("Select B", "B"), ("choose B", "B"), ("So B is correct.", "B"), ("So, B.", "B"), ("Thus B", "B"),
        ("Therefore, B", "B"), ("Therefore B is the right answer.", "B"), ("Hence (B).", "B"),
        ("So the answer: B.", "B"), ("Thus, option B is correct.", "B"),
        ("Based on the video, B is the best fit", "B"), ("Based on the video, the answer is B", "B"),
        ("B is the best answer", "B"), ("B fits best", "B"), ("B seems right", "B"), ("B appears to be correct", "B"),
        ("B looks right", "B"), ("B would be the most accurate", "B"), ("B is most likely", "B"), ("B is true", "B"),
        ("Only B matches the video.", "B"), ("Option B matches what is shown.", "B"), ("B matches", "B"),
        ("Statement B is true", "B"), ("B describes it", "B"), ("It must be B", "B"), ("It should be B.", "B"),
        ("That would be B.", "B"), ("That's B", "B"), ("This is B.", "B"), ("It was B", "B"),
        ("The car is blue, which is option B.", "B"), ("The car is blue, which corresponds to option B", "B"),
        ("The car is blue (B).", "B"), ("The car is blue, so (B)", "B"), ("The car is blue - B", "B"),
        ("a blue car (B)", "B"), ("a blue car - option B", "B"), ("The car is blue. B", "B"),
        ("The car is blue.\n\nB", "B"), ("The car is blue.\nB.", "B"), ("The car is blue: B.", "B"),
        ("This shows a blue car, B", "B"), ("The video shows a red car first and then... The answer is B.", "B"),
        ("A blue car", "B"), ("A blue car.", "B"), ("It is a blue car.", "B"), ("The answer is a blue car", "B"),
        ("The answer is: a blue car, not a red car.", "B"), ("Not a red car but a blue car.", "B"),
        ("There is no dog. There is a blue car.", "B"), ("I see a blue car, there is no red car", "B"),
        ("A dog runs", "C"), ("A man sits on a chair", "D"), ("Either A or B", None), ("The answer is A or B", None),
        ("Both A and B", None), ("A and B", None), ("A/B", None), ("A & B", None), ("It is either A or B.", None),
        ("I don't know", None), ("I am not sure", None), ("None of the above", None), ("none of A, B, C", None),
        ("The answer is E", None), ("Answer: E", None), ("All of them", None), ("A, B, C, D", None), ("(A)(B)", None),
        ("I cannot answer this question.", None), ("I can't choose A", None), ("I would not choose A", None),
        ("The answer is unclear.", None), ("A is wrong", None), ("Not A", None), ("not (A)", None),
        ("The answer is not A", None), ("I doubt A", None), ("A? No.", None),
        ("The answer is A. Hmm, actually it's B.", "B"), ("Answer: A\nActually, answer: B", "B"),
        ("A. No wait, B.", "B"), ("A... no, B", "B"), ("B! Definitely B.", "B"), ("B B B", "B"), ("B\nB", "B"),
        ("B, B", "B"), ("B. B.", "B"), ("The answer is B because A is wrong.", "B"),
        ("The answer is B since option A shows a red car.", "B"),
        ("The answer is B. Option A shows a red car, option C shows a dog.", "B"),
        ("B. Explanation: Option A is a red car.", "B"), ("B\n\nExplanation: option A and C are not shown.", "B"),
        ("Answer: B\nExplanation: (A) is wrong, (C) is wrong.", "B"),
        ("B because the car is blue and option A is red", "B"),
        ("Let's analyze: A. a red car - no. B. a blue car - yes. C. a dog runs - no. D. a man sits - no. "
         "Answer: B", "B"),
        ("A: no\nB: yes\nC: no\nD: no", "B"), ("A. False\nB. True\nC. False\nD. False", "B"),
        ("Let me think step by step.\n1. The car is blue.\n2. Option B says blue.\nThus, the answer is B.", "B"),
        ("The question asks which. Options: A. a red car B. a blue car C. a dog runs D. a man sits. The "
         "correct answer is B. a blue car.", "B"),
        ("The final choice: B", "B"), ("Final choice is B", "B"), ("Conclusion: B", "B"), ("In conclusion, B.", "B"),
        ("Result: B", "B"), ("Solution: B", "B"), ("Ans: B", "B"), ("Ans. B", "B"), ("ANSWER: B", "B"),
        ("ANS: B", "B"), ("Correct: B", "B"), ("Choice: B", "B"), ("Selected option: B", "B"), ("Prediction: B", "B"),
        ("Response: B", "B"), ("Assistant: B", "B"), ("{\"answer\": \"B\"}", "B"), ("{'answer': 'B'}", "B"),
        ("{\"answer\":\"B\",\"explanation\":\"A is wrong\"}", "B"), ("```json\n{\"answer\": \"B\"}\n```", "B"),
        ("{\"choice\": \"B\"}", "B"), ("answer = \"B\"", "B"), ("answer=B", "B"), ("The answer is B!", "B"),
        ("the answer is b.", "B"), ("THE ANSWER IS B", "B"), ("The Answer Is: B", "B"), ("The answers is B", "B"),
        ("The answer to this question is B", "B"), ("The correct answer to the question is: B", "B"),
        ("The answer for this question is B", "B"), ("The answer here is B", "B"),
        ("The answer, therefore, is B.", "B"), ("The answer, I think, is B", "B"),
        ("The answer would likely be B", "B"), ("The most appropriate answer is B", "B"),
        ("The most likely answer is (B)", "B"), ("The most suitable option is B.", "B"),
        ("The closest option is B", "B"), ("The best match is B.", "B"), ("The correct letter is B", "B"),
        ("the answer is the letter B", "B"), ("The answer is the second option, B", "B"),
        ("The answer is the option B", "B"), ("The correct answer is indeed B", "B"),
        ("The answer is definitely B", "B"), ("the answer is probably B", "B"), ("The answer is, B", "B"),
        ("The answer is...B", "B"), ("The answer is ... B", "B"), ("I am confident that the answer is B", "B"),
        ("I'm going with B", "B"), ("B (I think)", "B"), ("B?", "B"), ("Maybe B", "B"), ("Probably B", "B"),
        ("Possibly B.", "B"), ("Likely B", "B"), ("Sure! B", "B"), ("Sure, the answer is B.", "B"), ("OK: B", "B"),
        ("Okay, B.", "B"), ("Yes, B.", "B"), ("Hmm, B", "B"), ("Well, I guess B", "B"), ("I guess B", "B"),
        ("Neither A nor B. C.", "C"), ("B and C are wrong; A", "A"), ("A is not it. B is it.", "B"),
        ("Both A and C are incorrect, therefore the answer is (D)", "D"), ("My pick is B", "B"), ("I vote B", "B"),
        ("I'd rule out A and C. I'm left with B and D. I pick D.", "D"), ("It's definitely B", "B"),
        ("The answer is (A)... Actually, I was wrong. The answer is (B).", "B"), ("It has to be B", "B"),
        ("The answer is **not** A, it is **B**.", "B"), ("None of them; B is closest", "B"), ("must be B", "B"),
        ("which makes B the correct answer", "B"), ("A doesn't match. B does.", "B"), ("The option is B", "B"),
        ("I thought A, then B, finally C", "C"), ("A is the wrong answer", None),
        ("The answer is neither A nor B", None), ("A. ✗ B. ✓ C. ✗ D. ✗", "B"), ("故选：B", "B"),
        ("A) a red car: No\nB) a blue car: Yes", "B"), ("排除A和C，选B", "B"),
        ("D: a man sits, since A and B are cars", "D"), ("(B", "B"), ("*Answer*: B", "B"), ("Answer:** B", "B"),
    ],
)  # fmt: skip
def test_letters_however_they_are_stated(text: str, letter: str | None) -> None:
    """The last conclusion counts, negated letters do not, thinking is left out, two that fit equally are none."""
    assert choice(text, SCENES) == letter


@pytest.mark.parametrize(
    ("options", "replies"),
    [
        (["yes", "no"], {
            "B. No": "B", "A. Yes": "A", "No": "B", "yes": "A", "No.": "B", "B": "B", "The answer is no.": "B",
            "(B) no": "B", "B: No": "B", "B) No, there is no car.": "B", "No, B": "B", "Answer: No": "B",
            "no, there is none": "B", "Yes, it is.": "A",
        }),
        (["Yes", "No", "Cannot be determined"], {
            "C. Cannot be determined": "C", "Cannot be determined": "C", "B. No.": "B",
        }),
        (["Left", "Right", "Up", "Down"], {
            "B. Right": "B", "A. Left": "A", "Right": "B", "to the right": "B", "The answer is right": "B",
            "A is right": "A",
        }),
        (["True", "False"], {
            "B. False": "B", "A. True": "A", "False": "B", "(B) False.": "B",
        }),
        (["1", "2", "3", "4"], {
            "2": "B", "B. 2": "B", "There are 2.": "B", "The answer is 2": "B", "C": "C", "(B) 2": "B",
        }),
        ([f"thing {name}" for name in [*"abcdefgh", "eight", "nine", "ten"]], {
            "I think the answer is C": "C", "I": "I", "I would choose (I)": "I", "The answer is I": "I",
            "I. thing eight": "I", "I am not sure, but J": "J", "I see thing e": "E",
            "I believe it is thing e.": "E", "K": "K",
        }),
        (["Not visible", "a red car", "The answer is unknown", "None of the above"], {
            "A. Not visible": "A", "Not visible": "A", "A": "A", "(A) Not visible": "A",
            "The answer is A. Not visible": "A", "D. None of the above": "D", "None of the above": "D",
            "C. The answer is unknown": "C", "The answer is: not visible": "A",
            "The correct answer is D. None of the above": "D",
        }),
        (["The man opens the door.", "The man closes the door.", "The man does not move.", "The man leaves."], {
            "C. The man does not move.": "C", "The man does not move.": "C", "C": "C", "The man closes the door": "B",
            "The answer is C. The man does not move.": "C", "The man closes the door and leaves.": "B",
            "(C) The man does not move": "C",
        }),
        (["red", "blue", "dark blue", "green"], {
            "dark blue": "C", "C. dark blue": "C", "The car is dark blue.": "C", "The answer is dark blue.": "C",
            "not red, green": "D",
        }),
        (["A", "B", "C", "D"], {
            "B": "B", "The answer is C": "C", "B. B": "B",
        }),
        (["A dog", "A cat", "A horse", "A bird"], {
            "A dog": "A", "A cat": "B", "A. A dog": "A", "B. A cat": "B", "A horse is running": "C",
            "The answer is A horse": "C", "The answer is A.": "A", "I see A bird": "D", "A": "A", "(A)": "A",
            "The answer is A bird.": "D", "A Dog": "A", "B. A cat\nC. A horse\nD. A bird": "B",
            "The animal in the video is a horse, which is option C.": "C",
            "The person is holding a dog and then a cat. The correct answer is B: A cat.": "B", "Answer:B": "B",
            "answer:b": "B", "ANSWER:B.": "B", "Answer:(B)": "B", "Answer: B.\n\nThe video shows a cat.": "B",
            "B\n\nThe video shows a horse though.": "B", "The video shows a horse.\nAnswer: C": "C",
            "The wrong answer is A. The right answer is B": "B", "The wrong answer is A": None,
            "An incorrect answer would be A": None,
            "If A were true, the dog would bark. Since it does not, the answer is B.": "B",
            "Is it A? No. Is it B? Yes.": "B", "A is possible, but B is more likely.": "B",
            "A could be correct, but B is correct.": "B", "While A seems plausible, the correct answer is B.": "B",
            "Although the answer seems to be A, it is B.": "B",
            "The answer is either A or B, but I'd go with B.": "B", "Between A and B, I choose B.": "B",
            "The best answer is not A, C, or D. It's B.": "B",
            "Options A, C, and D can be ruled out, leaving B.": "B", "This leaves B.": "B",
            "That leaves us with B": "B", "leaving only B": "B", "A ❌ B ✅ C ❌ D ❌": "B", "Option: B": "B",
            "Option:B": "B", "option (b)": "B", "Choice b": "B", "The answer is B A cat": "B", "B A cat": "B",
            "B - A cat": "B", "B – A cat": "B", "B, A cat": "B", "B; A cat": "B", "B (A cat)": "B",
            "(B) - A cat": "B", "B: a cat is shown": "B", "B= A cat": "B",
            "the correct answer is option (B) A cat": "B", "the correct answer is (B): A cat": "B",
            "The correct answer is **B. A cat**.": "B", "**B. A cat**": "B", "**Correct answer:** **B**": "B",
            "**Correct Answer: B) A cat**": "B", "Correct answer (B)": "B", "Final answer: **B**.": "B",
            r"Final Answer: \boxed{B}": "B",
            r"Final Answer: The final answer is $\boxed{B}$. I hope it is correct.": "B",
            "The answer is B. I hope this helps! Let me know if A or C is needed.": "B",
            "<think>\nOkay, the answer might be A.\n</think>\n\n**B**": "B",
            "<think>Answer: A</think>\n<think>Answer: C</think>\nAnswer: B": "B",
            "<answer>A</answer> Wait. <answer>B</answer>": "B", r"\boxed{\text{A cat}}": "B",
            "<answer>A cat</answer>": "B", r"\boxed{A} ... \boxed{B}": "B", r"\boxed{A, B}": None,
            r"\boxed{A \text{ or } B}": None, "The answer is: \n\n**B**": "B", "The answer is:\n- B": "B",
            "Explanation: the cat is there. Therefore, the answer is B": "B", "Not B. Not C. Not D. So A.": "A",
            "It's not B, C or D, so A": "A", "not B or C, but D": "D", "A cat, not a dog": "B",
            "It's a cat, not a dog.": "B", "It isn't a dog but a cat": "B", "I see a cat without a dog": "B",
            "B​": "B", "﻿B": "B", "B<|im_end|>": "B", "B</s>": "B", "B<|endoftext|>": "B", "<s>B": "B", "b\n": "B",
            "B,": "B", ":B": "B", "- B": "B", "> B": "B", "B.\n": "B", "  B  ": "B", "The answer is not B": None,
            "B is not the answer": None, "B isn't the answer, D is": "D", "B is not the correct answer. D is.": "D",
            "The answer isn't B or C": None, "I don't think it's B": None, "I don't think B is correct": None,
            "I would not say B": None, "B? I don't think so. D.": "D", "Never B": None, "Anything but B": None,
            "It could be anything except B": None, "not A, not B, not C, so D": "D",
            "B is correct. A is incorrect. C is incorrect.": "B", "Correct: B. Incorrect: A, C, D.": "B",
            "A: incorrect, B: correct, C: incorrect": "B", "A (incorrect), B (correct)": "B",
            "A - wrong; B - right": "B",
        }),
    ],
)  # fmt: skip
def test_options_of_all_sorts(options: list[str], replies: dict[str, str | None]) -> None:
    """Options that are yes and no, negations, numbers, colours within colours, or begin with "A"."""
    assert {text: choice(text, options) for text in replies} == replies


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 4000, "answer " * 2000, "A, B, " * 300, "**" * 3000, "answer: " * 1000, "A is wrong. " * 2000,
        "{" * 100_000, "<think>" * 9000, "so 3D " * 9000, "no " * 20_000,
    ],
)  # fmt: skip
def test_long_replies_without_an_answer(text: str) -> None:
    """A pattern that backtracks would not end."""
    assert choice(text, SCENES) is None
    assert number(text) is None


def test_options_that_are_letters_or_numbers() -> None:
    assert choice("3", ["1", "2", "3"]) == "C"
    assert choice("B", ["B", "A"]) == "B"  # a letter alone is the letter, whatever the options say
    assert choice("D", ["yes", "no"]) is None


def test_an_option_inside_a_longer_one_was_not_meant() -> None:
    assert choice("he opens the red door", ["opens the door", "opens the red door", "the red door"]) == "B"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", 3.0), ("3.5 meters", 3.5), ("about 1,200", 1200.0), ("-2", -2.0), ("three", 3.0),
        ("Answer: 7, not 8", 7.0),
        ("one hundred", 100.0), ("twenty", 20.0), ("1/2", 0.5), ("twenty-five", 25.0), ("two and a half", 2.5),
        ("one hundred and five", 105.0), ("three thousand two hundred", 3200.0), ("1 1/2", 1.5), ("−5", -5.0),
        (r"\boxed{\frac{1}{2}}", 0.5), ("<think>3 or 4</think> four", 4.0), ("a dozen", 12.0), ("1/0", None),
        ("there are two chairs", 2.0), ("1e3", 1000.0), ("none that I see", None), ("", None),
    ],
)  # fmt: skip
def test_numbers(text: str, found: float | None) -> None:
    assert number(text) == found


@pytest.mark.parametrize(
    ("one", "other"), [("3.5", "35"), ("1:30", "130"), ("-5", "5"), ("1/2", "12"), ("c++", "c"), ("x<y", "x>y")]
)
def test_signs_that_matter_are_compared(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("(D).", "d"), ("1,200", "1200"), ("−5", "-5"), ("5.", "5"), ("t-shirt", "tshirt"), ("５", "5")]
)
def test_punctuation_that_does_not_matter_is_dropped(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
