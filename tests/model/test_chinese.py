"""Edits in Chinese, from a user's file to an editor that finds them."""

import json

from tiny_models import roberta, tiny_editor, tiny_llm

from recipe_ray.config import DataConfig, EditorConfig, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.datasets.sources import read_edit_data
from recipe_ray.model.batch import BatchMaker
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.training import make_optimizer, take_step
from recipe_ray.presets import MULTILINGUAL, preset
from recipe_ray.retrieval import decide

FACTS = {"法国": "里昂", "日本": "大阪", "巴西": "圣保罗", "埃及": "亚历山大", "印度": "孟买", "秘鲁": "库斯科"}
UNRELATED = {"水的化学式是": "H2O", "一年有几个月?": "十二个"}


def written(path, facts):
    records = [
        {
            "prompt": f"{country}的首都是",
            "target": city,
            "subject": country,
            "generality": [{"prompt": f"哪座城市是{country}的首都?"}],
            "locality": [{"prompt": prompt, "target": target} for prompt, target in UNRELATED.items()],
        }
        for country, city in facts.items()
    ]
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records), encoding="utf-8")
    return f"edits:{path}"


def test_chinese_edits_are_learned_and_found(tmp_path):
    source = written(tmp_path / "edits.jsonl", FACTS)
    tuning = written(tmp_path / "tuning.jsonl", {"中国": "上海", "德国": "波恩"})
    data = read_edit_data(DataConfig(sources=(source,), tuning_sources=(tuning,)))
    editor, llm = tiny_editor(roberta(context=128), similarity="cosine"), tiny_llm()
    joint = JointTraining(editor, llm, LossConfig()).train()
    config = TrainConfig(
        editor=EditorConfig(llm="tiny", encoder="tiny"),
        stages=(Stage(num_steps=150),),
        encoder_lr=2e-3,
        head_lr=1e-2,
        prompt_lr=1e-2,
    )
    optimizer, schedule = make_optimizer(editor, config)
    maker = BatchMaker(
        encoder=editor.encoder, llm=llm, losses=joint.losses, num_virtual_tokens=3, position="first", answer_end="。"
    )
    batches = data.training(len(FACTS), "0")
    edit_losses = []
    for number in range(config.num_steps):
        turns = maker.make(batches.batch(number), edit=True, locality=True)
        metrics, _ = take_step(joint, turns, LossWeights(), optimizer=optimizer, schedule=schedule, max_grad_norm=1.0)
        edit_losses.append(metrics["reliability"].item())
    assert edit_losses[-1] < 0.95 * edit_losses[0]
    editor.eval()
    keys, _ = editor.encode_facts([f"{country}的首都是 {city}" for country, city in FACTS.items()])

    def found(questions):
        queries = editor.encode_queries(questions)
        scores = queries @ keys.T
        return decide(scores.argmax(1), scores.max(1), editor.thresholds(queries)).row_B.tolist()

    assert found([f"哪座城市是{country}的首都?" for country in FACTS]) == list(range(len(FACTS)))
    assert found(list(UNRELATED)) == [-1] * len(UNRELATED)


def test_a_preset_has_a_multilingual_encoder():
    assert preset("qwen2.5-7b-multilingual").editor.encoder == MULTILINGUAL == "FacebookAI/xlm-roberta-base"
