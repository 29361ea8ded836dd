//! Tasks on a toy model: likelihoods against plain forward passes, and the commands around tasks.

#![allow(clippy::unwrap_used)]

mod toy;

use assert_cmd::Command;
use evaluate::{
    likelihood::{Encoder, Likelihood, Request, score},
    task::{
        Task,
        data::TaskData,
        prompt::{Answer, Item, Pair, Templates},
    },
};
use model::Checkpoint;
use serde_json::Value;
use std::{fs, path::Path};
use tempfile::TempDir;
use toy::Toy;

/// Sums of float32 likelihoods of a few tokens, hidden states differing in the order of sums.
const TOLERANCE: f64 = 5e-5;

/// Log-probability of `tokens[start..]`, and whether each is the most probable, by softmax over all logits in float64.
fn reference(checkpoint: &Checkpoint, tokens: &[u32], start: usize) -> (f64, bool) {
    let hidden = checkpoint.hidden_states(&tokens[..tokens.len() - 1]).unwrap();
    let logits = checkpoint.head().unwrap().logits(&hidden);
    let rows: Vec<&[f32]> = logits.chunks_exact(checkpoint.config.vocabulary).collect();
    let (mut sum, mut greedy) = (0.0, true);
    for position in start..tokens.len() {
        let (row, target) = (rows[position - 1], tokens[position] as usize);
        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum += f64::from(row[target]) - total.ln();
        greedy &= row.iter().all(|logit| *logit <= row[target]);
    }
    (sum, greedy)
}

fn words(numbers: &[u32]) -> String {
    numbers.iter().map(|number| format!("w{}", 2 + number % 37)).collect::<Vec<_>>().join(" ")
}

/// An item of `choices` after `prefix` and `context`, all given as numbers of words.
fn item(prefix: &[u32], context: &[u32], choices: &[&[u32]]) -> Item {
    let prefix = if prefix.is_empty() { String::new() } else { format!("{}\n\n", words(prefix)) };
    let pair = |choice: &&[u32]| Pair {
        context: format!("{prefix}{}", words(context)).into(),
        continuation: format!(" {}", words(choice)),
        choice: words(choice),
    };
    let pairs = choices.iter().map(pair).collect();
    let (id, prefix, preface) = (format!("{context:?}"), prefix.as_str().into(), std::sync::Arc::default());
    Item { id, subject: None, prefix, preface, pairs, answer: Answer::One(0) }
}

fn items() -> Vec<Item> {
    let shots: Vec<u32> = (0..24).map(|i| i * i + 3).collect();
    vec![
        item(&shots, &[1, 2, 3], &[&[5], &[6], &[7], &[8]]),
        item(&shots, &[4], &[&[5, 6, 7], &[5, 6], &[9, 1, 2, 3, 4]]),
        item(&[], &[9, 8, 7, 6], &[&[5], &[6, 5, 4]]),
        item(&[], &[], &[&[5, 3], &[6]]),
        item(&[1, 2], &[11, 12], &[&[5, 3]]),
        item(&shots, &[4, 4], &[&[1, 1], &[1, 2]]),
    ]
}

fn requests(checkpoint: &Checkpoint, items: &[Item]) -> Vec<Request> {
    Encoder::new(checkpoint, checkpoint.config.max_positions).requests(items).unwrap()
}

fn scored(checkpoint: &Checkpoint, requests: &[Request], memory: u64, threads: usize) -> Vec<Vec<Likelihood>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| score(checkpoint, requests, memory, &mut |_| {}).unwrap())
}

#[test]
fn likelihoods_are_those_of_whole_sequences() {
    for bos in [false, true] {
        let (_folder, checkpoint) = Toy { bos, ..Toy::PLAIN }.open();
        let requests = requests(&checkpoint, &items());
        assert!(requests[0].prefix >= 24 && requests[2].prefix == 0 && requests[4].prefix == 0);
        let scores = scored(&checkpoint, &requests, 1 << 30, 2);
        for (request, scores) in requests.iter().zip(&scores) {
            assert_eq!(request.sequences.len(), scores.len());
            for (sequence, ours) in request.sequences.iter().zip(scores) {
                let (expected, greedy) = reference(&checkpoint, &sequence.tokens, sequence.start);
                assert!((ours.log_probability - expected).abs() < TOLERANCE, "{ours:?} {expected}");
                assert_eq!((ours.tokens, ours.greedy), (sequence.tokens.len() - sequence.start, greedy));
            }
        }
    }
}

#[test]
fn an_item_scores_the_same_to_the_bit_in_any_company() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let requests = requests(&checkpoint, &items());
    let together = scored(&checkpoint, &requests, 1 << 30, 2);
    for (memory, threads) in [(1 << 30, 1), (0, 3), (2000, 2)] {
        assert_eq!(scored(&checkpoint, &requests, memory, threads), together);
    }
    let backwards: Vec<Request> = requests.iter().rev().cloned().collect();
    let reversed: Vec<_> = scored(&checkpoint, &backwards, 1 << 30, 2).into_iter().rev().collect();
    assert_eq!(reversed, together);
    for (request, expected) in requests.iter().zip(&together) {
        assert_eq!(&scored(&checkpoint, std::slice::from_ref(request), 1 << 30, 1)[0], expected);
    }
}

#[test]
fn contexts_too_long_lose_their_beginning_and_continuations_never_are_empty() {
    let (_folder, checkpoint) = Toy::PLAIN.open();
    let encoder = Encoder::new(&checkpoint, 64);
    let long: Vec<u32> = (0..100).collect();
    let request = encoder.request(&item(&[], &long, &[&[5], &[6, 7]])).unwrap();
    assert!(request.truncated);
    // 64 tokens are fed, and the last is not.
    assert!(request.sequences.iter().all(|sequence| sequence.tokens.len() == 65));
    assert_eq!(request.sequences.iter().map(|s| s.tokens.len() - s.start).collect::<Vec<_>>(), [1, 2]);
    let error = encoder.request(&item(&[], &[1], &[&long])).unwrap_err().to_string();
    assert!(error.contains("no room for context"), "{error}");
    // The context's last word grows into another: the whole's last token is scored, and that is said.
    let grown = Item {
        pairs: vec![Pair { context: "w3 w4".into(), continuation: "x w5".into(), choice: "x w5".into() }],
        ..item(&[], &[], &[])
    };
    let request = encoder.request(&grown).unwrap();
    assert!(request.spanned && request.sequences[0].start == 1 && request.sequences[0].tokens.len() == 3);
    // White space at the end of a context belongs to what follows.
    let spaced = Item {
        pairs: vec![Pair { context: "w3 ".into(), continuation: "w5".into(), choice: "w5".into() }],
        ..item(&[], &[], &[])
    };
    let request = encoder.request(&spaced).unwrap();
    assert!(!request.spanned && request.sequences[0].start == 1);
}

/// The items of a built-in task from files in `folder`.
fn published(name: &str, folder: &Path, shots: usize) -> Result<Vec<Item>, String> {
    let task = Task::open(name).unwrap();
    let data = TaskData::read(&task, &[folder.to_path_buf()], shots > 0).map_err(|error| error.to_string())?;
    let mut templates = Templates::new(&task).unwrap();
    let items = data.rows.iter().map(|row| templates.item(row, &data, shots));
    items.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

#[test]
fn files_are_read_in_the_shapes_in_which_they_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let header = "id,question,A,B,C,D,answer,explanation\n";
    write("ceval/val/law_val.csv", &format!("{header}0,\"甲，\n乙\",一,二,三,四,B,\n1,丙,一,二,三,四,D,因为\n"));
    write("ceval/dev/law_dev.csv", &format!("{header}0,丁,一,二,三,四,A,因为\n"));
    let items = published("ceval", folder.path(), 1).unwrap();
    let expected = "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n丁\nA. 一\nB. 二\nC. 三\nD. 四\n答案： A\n\n\
        甲，\n乙\nA. 一\nB. 二\nC. 三\nD. 四\n答案：";
    assert_eq!((&*items[0].pairs[0].context, &items[0].answer, &*items[1].id), (expected, &Answer::One(1), "law/1"));
    let official = published("ceval_official", folder.path(), 1).unwrap();
    assert!(
        official[0].pairs[0].context.contains("法学考试的") && official[0].pairs[0].context.contains("答案：A\n\n甲")
    );

    write("mmlu/test/virology_test.csv", "\"Is a, b?\",no,yes,maybe,never,C\n");
    write("mmlu/dev/virology_dev.csv", "Q?,1,2,3,4,A\n");
    let items = published("mmlu", folder.path(), 1).unwrap();
    assert!(items[0].pairs[0].context.ends_with("Answer: A\n\nIs a, b?\nA. no\nB. yes\nC. maybe\nD. never\nAnswer:"));
    assert_eq!(items[0].answer, Answer::One(2));

    write(
        "truthfulqa/mc_task.json",
        r#"[{"question": "Q?", "mc1_targets": {"yes": 1, "no": 0},
        "mc2_targets": {"no": 0, "yes": 1, "well": 1}}]"#,
    );
    assert_eq!(published("truthfulqa_mc1", folder.path(), 0).unwrap()[0].answer, Answer::One(0));
    let items = published("truthfulqa_mc2", folder.path(), 0).unwrap();
    assert_eq!(
        (items[0].pairs[2].choice.as_str(), &items[0].answer),
        ("well", &Answer::Marks(vec![false, true, true]))
    );

    write("piqa/valid.jsonl", "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\"}\n");
    assert!(published("piqa", folder.path(), 0).unwrap_err().contains("valid-labels.lst"));
    write("piqa/valid-labels.lst", "1\n0\n");
    assert!(published("piqa", folder.path(), 0).unwrap_err().contains("2 labels"));
    write("piqa/valid-labels.lst", "1\n");
    assert_eq!(published("piqa", folder.path(), 0).unwrap()[0].answer, Answer::One(1));
}

fn evaluate(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("evaluate").unwrap();
    command.args(arguments).env_remove("CALIPER_LOG").env_remove("CALIPER_DATA").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

const TASK: &str = r#"
name = "words"
about = "Which word follows"
prompt_source = "the tests"
shots = 2
metrics = ["acc", "acc_norm"]

[data]
test = ["words/{subject}.jsonl"]
shots = ["words/{subject}.shots.csv"]
columns = ["q", "a", "b", "gold"]

[fields]
options = "[a, b]"

[prompt]
description = "Of {{ subject_name }}:\n\n"
context = "{{ q }}"
choices = "options"
answer = "gold | int"
"#;

/// A task file and its data: two subjects of twelve items.
fn task(folder: &Path) -> String {
    fs::create_dir(folder.join("words")).unwrap();
    for (subject, offset) in [("first_one", 0), ("other", 50)] {
        let line = |index: u32| {
            let [q, a, b] = [3, 5, 7].map(|factor| words(&[index * factor + offset, index + factor]));
            format!("{{\"q\": \"{q}\", \"a\": \"{a}\", \"b\": \"{b}\", \"gold\": {}}}\n", index % 2)
        };
        fs::write(folder.join(format!("words/{subject}.jsonl")), (0..12).map(line).collect::<String>()).unwrap();
        fs::write(folder.join(format!("words/{subject}.shots.csv")), "w2,w3,w4,1\nw5,w6 w7,w8,0\n").unwrap();
    }
    let file = folder.join("words.toml");
    fs::write(&file, TASK).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_task_of_ones_own_runs_against_a_baseline_and_its_records_compare() {
    let (model, base) = (Toy { shift: 0.02, ..Toy::PLAIN }.write(), Toy::PLAIN.write());
    let (folder, records) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = task(folder.path());
    let arguments = [path(&model), "--baseline", path(&base), "--tasks", &file, "--data", path(&folder)];
    let run = evaluate(&[&arguments[..], &["--records", path(&records), "--json"]].concat());
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let settings = text(&run.stderr);
    assert!(settings.contains("words: 24 of 24 items, shots 2") && settings.contains("chat template not applied"));
    assert!(settings.contains("BOS        none: the tokenizer adds none"), "{settings}");
    let json: Value = serde_json::from_slice(&run.stdout).unwrap();
    let report = &json["tasks"][0];
    assert_eq!(
        (&report["task"], &report["available"], &report["model"]["items"]),
        (&"words".into(), &24.into(), &24.into())
    );
    assert_eq!(report["model"]["metrics"][0]["metric"], "acc");
    assert_eq!(report["model"]["subjects"].as_array().unwrap().len(), 2);
    assert_eq!(report["files"].as_array().unwrap().len(), 4);
    assert!(json.get("perplexity").is_none() && json.get("texts").is_none());

    let lines = fs::read_to_string(records.path().join("words.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["id"], &first["answer"], &first["schema"]), (&"first_one/0".into(), &0.into(), &1.into()));
    assert_eq!((lines.lines().count(), first["log_probabilities"].as_array().unwrap().len()), (24, 2));

    let baseline = records.path().join("baseline");
    let compared = evaluate(&["compare", baseline.to_str().unwrap(), path(&records), "--json"]);
    let compared: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(compared["runs"][0]["tasks"][0], report["paired"]);
    let tables = evaluate(&["compare", baseline.to_str().unwrap(), path(&records), path(&records), "--show-flips"]);
    let tables = text(&tables.stdout);
    assert!(tables.contains("McNemar p") && tables.contains("baseline picks"), "{tables}");

    // The tables, a model against itself, and few items drawn the same way each time.
    let itself = [path(&base), "--baseline", path(&base), "--tasks", &file, "--data", path(&folder), "--limit", "5"];
    let run = evaluate(&itself);
    let tables = text(&run.stdout);
    assert!(tables.contains("5 of 24") && tables.contains("+0.0000 … +0.0000"), "{tables}");
    let drawn = |seed| {
        let out = tempfile::tempdir().unwrap();
        evaluate(&[&itself[..], &["--seed", seed, "--records", path(&out)]].concat());
        fs::read_to_string(out.path().join("words.jsonl")).unwrap()
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let whole: Vec<&str> = lines.lines().map(|line| line.split("\"prompt_sha256\"").next().unwrap()).collect();
    assert!(drawn("1").lines().all(|line| whole.contains(&line.split("\"prompt_sha256\"").next().unwrap())));
}

#[test]
fn tasks_are_listed_and_shown() {
    let (model, folder) = (Toy { bos: true, ..Toy::PLAIN }.write(), tempfile::tempdir().unwrap());
    let file = task(folder.path());
    insta::assert_snapshot!("list", text(&evaluate(&["tasks", "--data", "nowhere"]).stdout));
    let shown = evaluate(&["show", &file, path(&model), "--item", "13", "--data", path(&folder)]);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    insta::assert_snapshot!("show", text(&shown.stdout));
}

#[test]
fn what_is_wrong_with_a_task_is_said_in_a_sentence() {
    let (model, folder) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let file = task(folder.path());
    let (model, data) = (path(&model), path(&folder));
    let other = folder.path().join("other.toml");
    fs::write(&other, TASK.replace("about", "doc_to_text")).unwrap();
    let result = folder.path().join("base.json");
    let words = folder.path().join("text.txt");
    fs::write(&words, toy::text(300)).unwrap();
    let (other, words) = (other.to_str().unwrap(), words.to_str().unwrap());
    let attached = format!("--json={}", result.display());
    assert_eq!(evaluate(&[model, "--perplexity", words, &attached]).status.code(), Some(0));
    let stored = result.to_str().unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("no such task", &[model, "--tasks", "arc"]),
        ("no data", &[model, "--tasks", "piqa", "--data", data]),
        ("unknown key", &[model, "--tasks", other, "--data", data]),
        ("too many shots", &[model, "--tasks", &file, "--data", data, "--shots", "3"]),
        ("twice", &[model, "--tasks", &format!("{file},{file}"), "--data", data]),
        ("stored baseline", &[model, "--baseline", stored, "--tasks", &file, "--data", data]),
        ("stored divergence", &[model, "--baseline", stored, "--perplexity", words, "--divergence"]),
        ("divergence without a text", &[model, "--baseline", model, "--tasks", &file, "--data", data, "--divergence"]),
        ("no such item", &["show", &file, "--item", "24", "--data", data]),
        ("no records", &["compare", data, data]),
        ("limit of none", &[model, "--tasks", &file, "--limit", "0"]),
    ];
    let report: Vec<String> = cases
        .iter()
        .map(|(name, arguments)| {
            let run = evaluate(arguments);
            let message = text(&run.stderr).replace(data, "FOLDER").replace(model, "MODEL");
            format!("# {name}: exit code {}\n{message}", run.status.code().unwrap())
        })
        .collect();
    insta::assert_snapshot!("errors", report.join("\n"));
}

/// A task whose answers are written: `w` and a number in what follows.
fn written_task(folder: &Path, more: &str) -> String {
    let records: Vec<String> = (0..12)
        .map(|i| {
            serde_json::json!({"question": words(&[i, i * i, 3 * i]), "answer": format!("w{}", 2 + i)}).to_string()
        })
        .collect();
    fs::write(folder.join("written.jsonl"), records.join("\n")).unwrap();
    let task = format!(
        "name = 'written'\nabout = ''\nprompt_source = 'our own'\nshots = 2\nmetrics = ['exact_match_flexible']\n[data]\n\
         test = ['written.jsonl']\nshots = ['written.jsonl']\ndraw = 'random'\n[prompt]\ncontext = '{{{{ question }}}}'\n\
         [generate]\nanswer = '{{{{ answer }}}}'\nlongest = 7\nstops = ['w9']\nflexible = '(w[0-9]+)'\n{more}"
    );
    let path = folder.join("written.toml");
    fs::write(&path, task).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_a_model_writes_is_its_likeliest_continuation_whatever_the_threads() {
    let (folder, checkpoint) = Toy::PLAIN.open();
    let work = tempfile::tempdir().unwrap();
    let task = written_task(work.path(), "");
    let records = |threads: &str| {
        let out = work.path().join(threads);
        let data = path(&work);
        let run = evaluate(&[
            path(&folder),
            "--tasks",
            &task,
            "--data",
            data,
            "--threads",
            threads,
            "--records",
            out.to_str().unwrap(),
        ]);
        assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
        fs::read_to_string(out.join("written.jsonl")).unwrap()
    };
    let written = records("1");
    assert_eq!(written, records("3"));

    let parsed = Task::open(&task).unwrap();
    let data = TaskData::read(&parsed, &[work.path().to_owned()], true).unwrap();
    let shots = evaluate::task::exercise::shots(&data, parsed.data.draw, 2).unwrap();
    let templates = Templates::new(&parsed).unwrap();
    let encoder = Encoder::new(&checkpoint, checkpoint.config.max_positions);
    let head = checkpoint.head().unwrap();
    for (line, (row, shots)) in written.lines().zip(data.rows.iter().zip(&shots)) {
        let exercise = templates.exercise(row, shots).unwrap();
        let mut tokens = encoder.encode(&exercise.prompt).unwrap();
        let given = tokens.len();
        for _ in 0..7 {
            let hidden = checkpoint.hidden_states(&tokens).unwrap();
            let logits = head.logits(&hidden[hidden.len() - checkpoint.config.hidden_size..]);
            let best = (0..logits.len()).fold(0, |best, next| if logits[next] > logits[best] { next } else { best });
            if checkpoint.config.eos_tokens.contains(&(best as u32)) {
                break;
            }
            tokens.push(best as u32);
        }
        let all = checkpoint.tokenizer.decode(&tokens[given..], true).unwrap();
        let record: Value = serde_json::from_str(line).unwrap();
        let response = record["response"].as_str().unwrap();
        assert_eq!(response, all.split("w9").next().unwrap());
        let right = response.split_whitespace().last() == Some(&exercise.answer);
        assert_eq!(record["correct"], right, "{response:?} {}", exercise.answer);
    }
}

#[test]
fn programs_are_run_only_when_allowed() {
    let (model, work) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let task = written_task(work.path(), "[generate.program]\ntests = 'assert True'\n");
    let task_text = fs::read_to_string(&task).unwrap().replace("exact_match_flexible", "pass_at_1");
    fs::write(&task, task_text).unwrap();
    let run = evaluate(&[path(&model), "--tasks", &task, "--data", path(&work)]);
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("--allow-code-execution"), "{}", text(&run.stderr));
}

#[test]
fn chat_template_system_prompt_and_bos_are_chosen_shown_and_recorded() {
    let (model, folder) = (Toy { bos: true, ..Toy::PLAIN }.write(), tempfile::tempdir().unwrap());
    let template = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}\
                    {% if add_generation_prompt %} assistant{% endif %}";
    fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    let file = task(folder.path());
    let shown = |more: &[&str]| {
        let arguments = ["show", &file, path(&model), "--item", "13", "--data", path(&folder)];
        text(&evaluate(&[&arguments, more].concat()).stdout)
    };
    let chat = ["--chat-template", "on", "--system-prompt", "w9"];
    let (plain, framed) = (shown(&[]), shown(&chat));
    assert!(plain.contains("chat template not applied; no system prompt of ours"), "{plain}");
    assert!(framed.contains("chat template applied; system prompt \"w9\""), "{framed}");
    let context = |shown: &str| {
        let (_, context) = shown.split_once("for every choice\n").unwrap();
        context.split_once("\n--- end").unwrap().0.to_owned()
    };
    assert_eq!(context(&framed), format!("<s> system w9 user {} assistant", context(&plain)));
    let choice = |shown: &str| shown.lines().find(|line| line.starts_with("choice 1")).unwrap().to_owned();
    assert_eq!(choice(&plain).replacen("\" ", "\"", 1), choice(&framed));
    // The template's BOS is the only one.
    let tokens = |shown: &str| shown.lines().filter(|line| line.starts_with("choice 0")).nth(1).unwrap().to_owned();
    assert_eq!(tokens(&framed).matches("0=\"<s>\"").count(), 1);
    assert!(shown(&["--bos", "never"]).contains("BOS        none: switched off"));
    assert_eq!(tokens(&shown(&["--bos", "always"])), tokens(&plain));
    assert!(context(&shown(&["--system-prompt", "w9 "])).starts_with("w9 Of other"));
    // The description joins the system message, each solved example is a question and an answer without delimiter.
    let turns = context(&shown(&["--chat-template", "turns", "--system-prompt", "w9 "]));
    let expected = "<s> system w9 Of other:\n\n user w2 assistant w4 user w5 assistant w6 w7 user w18 w6 assistant";
    assert_eq!(turns, expected);

    let run = |more: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let arguments = [path(&model), "--tasks", &file, "--data", path(&folder), "--records", path(&out), "--json"];
        let run = evaluate(&[&arguments, more].concat());
        assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
        let line = fs::read_to_string(out.path().join("words.jsonl")).unwrap();
        let record: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        (out, record, serde_json::from_slice::<Value>(&run.stdout).unwrap()["tasks"][0].clone())
    };
    let (plain, framed) = (run(&[]), run(&chat));
    assert!(plain.1.get("framing").is_none());
    let expected = serde_json::json!({"chat_template": true, "system_prompt": "w9", "bos_rule": "tokenizer"});
    assert_eq!(framed.1["framing"], expected);
    let turns = run(&["--chat-template", "turns"]);
    let expected =
        serde_json::json!({"chat_template": true, "turns": true, "system_prompt": null, "bos_rule": "tokenizer"});
    assert_eq!(turns.1["framing"], expected);
    assert_eq!((&framed.2["chat_template"], &framed.2["system_prompt"]), (&true.into(), &"w9".into()));
    assert_eq!((&plain.2["chat_template"], &plain.2["bos_rule"]), (&false.into(), &"tokenizer".into()));
    let compared = evaluate(&["compare", path(&plain.0), path(&framed.0)]);
    assert!(text(&compared.stderr).contains("no item with the same prompt"), "{}", text(&compared.stderr));

    let bare = Toy::PLAIN.write();
    let refused = evaluate(&[path(&bare), "--tasks", &file, "--data", path(&folder), "--chat-template", "on"]);
    assert!(text(&refused.stderr).contains("it brings no chat template"), "{}", text(&refused.stderr));
    assert_eq!(evaluate(&[path(&bare), "--perplexity", "x", "--bos", "never"]).status.code(), Some(2));
    assert_eq!(evaluate(&["show", &file, "--data", path(&folder), "--bos", "never"]).status.code(), Some(1));
}

#[test]
fn drawn_answers_depend_on_seed_and_item_alone() {
    let (model, work) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    let task = written_task(work.path(), "");
    let run = |more: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let arguments = [path(&model), "--tasks", &task, "--data", path(&work), "--records", path(&out)];
        let run = evaluate(&[&arguments, more].concat());
        assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
        (fs::read_to_string(out.path().join("written.jsonl")).unwrap(), text(&run.stdout))
    };
    let (drawn, tables) = run(&["--temperature", "2", "--top-p", "0.9", "--threads", "1"]);
    assert_eq!(drawn, run(&["--temperature", "2", "--top-p", "0.9", "--threads", "3"]).0);
    assert!(tables.contains("drawn with temperature 2, top-p 0.9, seed 0"), "{tables}");
    let greedy = run(&[]).0;
    assert!(drawn != greedy && run(&["--temperature", "0"]).0 == greedy);
    assert_ne!(drawn, run(&["--temperature", "2", "--top-p", "0.9", "--seed", "1"]).0);
    let few = run(&["--temperature", "2", "--top-p", "0.9", "--limit", "5"]).0;
    assert!(few.lines().count() == 5 && few.lines().all(|line| drawn.lines().any(|other| other == line)));

    let usage = evaluate(&[path(&model), "--tasks", &task, "--samples-per-task", "3"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("--temperature"), "{}", text(&usage.stderr));
    let several = ["--samples-per-task", "3", "--temperature", "1"];
    let refused = evaluate(&[&[path(&model), "--tasks", &task, "--data", path(&work)], &several[..]].concat());
    assert!(text(&refused.stderr).contains("tasks that test programs"), "{}", text(&refused.stderr));
}

#[test]
fn instructions_are_counted_by_prompt_and_by_instruction() {
    let (model, work) = (Toy::PLAIN.write(), tempfile::tempdir().unwrap());
    fs::create_dir(work.path().join("ifeval")).unwrap();
    let item = |prompt: &str, more: &str| {
        format!(
            "{{\"key\": 1, \"prompt\": \"{prompt}\", \"instruction_id_list\": [\"punctuation:no_comma\"{}], \
             \"kwargs\": [{{}}{}]}}\n",
            if more.is_empty() { "" } else { ", \"keywords:existence\", \"keywords:forbidden_words\"" },
            more
        )
    };
    let more = ", {\"keywords\": [\"absent\"]}, {\"forbidden_words\": [\"absent\"]}";
    let data = work.path().join("ifeval/input_data.jsonl");
    fs::write(&data, item("w2 w3", more) + &item("w5 w7", "")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let arguments = [path(&model), "--baseline", path(&model), "--tasks", "ifeval", "--data", path(&work)];
    let run = evaluate(&[&arguments[..], &["--records", path(&out), "--json"]].concat());
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let json: Value = serde_json::from_slice(&run.stdout).unwrap();
    let metrics = json["tasks"][0]["model"]["metrics"].as_array().unwrap();
    let values: Vec<(&str, f64)> =
        metrics.iter().map(|m| (m["metric"].as_str().unwrap(), m["value"].as_f64().unwrap())).collect();
    // One of two prompts; three of four instructions, however they are spread over prompts.
    assert_eq!(values[0], ("prompt_level_strict_acc", 0.5));
    assert_eq!(values[1], ("inst_level_strict_acc", 0.75));
    assert_eq!((values[2].0, values[3].0), ("prompt_level_loose_acc", "inst_level_loose_acc"));
    let paired = json["tasks"][0]["paired"]["metrics"].as_array().unwrap();
    assert_eq!((&paired[1]["baseline"]["value"], &paired[1]["difference"]["value"]), (&0.75.into(), &0.0.into()));
    let record = fs::read_to_string(out.path().join("ifeval.jsonl")).unwrap();
    let record: Value = serde_json::from_str(record.lines().next().unwrap()).unwrap();
    let expected = serde_json::json!({"id": "keywords:existence", "strict": false, "loose": false});
    assert_eq!((&record["instructions"][1], record["instructions"].as_array().unwrap().len()), (&expected, 3));

    fs::write(&data, item("w2", "").replace("no_comma", "no_rhyme")).unwrap();
    let refused = text(&evaluate(&[path(&model), "--tasks", "ifeval", "--data", path(&work)]).stderr);
    assert!(refused.contains("`punctuation:no_rhyme` is none of the 25"), "{refused}");
}
