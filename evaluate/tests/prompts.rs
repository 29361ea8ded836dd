//! Whole prompts, byte for byte, written out by hand from the documented rules of lm-evaluation-harness: description,
//! then for each shot text, delimiter, target and separator, then the text, with no delimiter behind it.

#![allow(clippy::unwrap_used)]

use evaluate::task::{
    Task,
    data::{Row, TaskData},
    exercise,
    prompt::{Answer, Item, Templates},
};
use serde_json::{Value, json};

fn row(subject: Option<&str>, place: usize, record: Value) -> Row {
    let Value::Object(record) = record else { panic!("an object") };
    Row { subject: subject.map(str::to_owned), place, record }
}

fn item(task: &str, row: &Row, data: &TaskData, shots: usize) -> Item {
    Templates::new(&Task::open(task).unwrap()).unwrap().item(row, data, shots).unwrap()
}

#[test]
fn mmlu_with_five_shots() {
    let subject = Some("high_school_physics");
    let question = |place: usize, answer: &str| {
        let text = format!("What is {place}?");
        row(subject, place, json!({"question": text, "A": "w", "B": "x", "C": "y", "D": "z", "answer": answer}))
    };
    let mut data = TaskData::default();
    let solved = ["A", "D", "B", "B", "C", "A"].into_iter().enumerate().map(|(place, answer)| question(place, answer));
    data.shots.insert(subject.map(str::to_owned), solved.collect());
    let found = item("mmlu", &question(9, "C"), &data, 5);
    let expected = "The following are multiple choice questions (with answers) about high school physics.\n\n\
        What is 0?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n\
        What is 1?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n\
        What is 2?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n\
        What is 3?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n\
        What is 4?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\n\
        What is 9?\nA. w\nB. x\nC. y\nD. z\nAnswer:";
    assert!(found.pairs.iter().all(|pair| &*pair.context == expected));
    assert_eq!(found.pairs.iter().map(|pair| pair.continuation.as_str()).collect::<Vec<_>>(), [" A", " B", " C", " D"]);
    assert_eq!(found.answer, Answer::One(2));
}

#[test]
fn arc_and_hellaswag() {
    let record = json!({"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"});
    for task in ["arc_easy", "arc_challenge"] {
        let found = item(task, &row(None, 0, record.clone()), &TaskData::default(), 0);
        assert_eq!(&*found.pairs[0].context, "Question: Which is hot?\nAnswer:");
        assert_eq!([&*found.pairs[0].continuation, &*found.pairs[1].continuation], [" ice", " fire"]);
        assert_eq!(found.answer, Answer::One(1));
    }
    let record = json!({"activity_label": "Baking", "ctx_a": "A woman mixes  dough. [title]Step one", "ctx_b": "she",
        "endings": ["eats [step] it.", "kneads it."], "label": "1"});
    let record = {
        let mut record = record;
        record["endings"].as_array_mut().unwrap().extend([json!("sleeps."), json!("sings.")]);
        record
    };
    let found = item("hellaswag", &row(None, 0, record), &TaskData::default(), 0);
    // Two spaces become one, once; ` [title]` a full stop and a space; what other brackets hold goes.
    assert_eq!(&*found.pairs[0].context, "Baking: A woman mixes dough.. Step one She");
    assert_eq!(found.pairs[0].continuation, " eats it.");
    assert_eq!((found.pairs[1].continuation.as_str(), found.answer), (" kneads it.", Answer::One(1)));
}

const FIRST: &str = "\
    Question: How many is 7?\nAnswer: It is 7.\n#### 7\n\n\
    Question: How many is 0?\nAnswer: It is 0.\n#### 0\n\n\
    Question: How many is 6?\nAnswer: It is 6.\n#### 6\n\n\
    Question: How many is 5?\nAnswer: It is 5.\n#### 5\n\n\
    Question: How many is 4?\nAnswer: It is 4.\n#### 4\n\n\
    Question: How many is 100?\nAnswer:";

const SECOND: &str = "\
    Question: How many is 1?\nAnswer: It is 1.\n#### 1\n\n\
    Question: How many is 0?\nAnswer: It is 0.\n#### 0\n\n\
    Question: How many is 2?\nAnswer: It is 2.\n#### 2\n\n\
    Question: How many is 7?\nAnswer: It is 7.\n#### 7\n\n\
    Question: How many is 6?\nAnswer: It is 6.\n#### 6\n\n\
    Question: How many is 101?\nAnswer:";

/// Python's `random.Random(1234)` draws [7, 0, 6, 5, 4] and then [1, 0, 2, 7, 6] from eight solved examples.
#[test]
fn gsm8k_with_five_shots_drawn_anew_for_each_item() {
    let task = Task::open("gsm8k").unwrap();
    let question = |place: usize| {
        let record =
            json!({"question": format!("How many is {place}?"), "answer": format!("It is {place}.\n#### {place}")});
        row(None, place, record)
    };
    let mut data = TaskData { rows: vec![question(100), question(101)], ..TaskData::default() };
    data.shots.insert(None, (0..8).map(question).collect());
    let solved = exercise::shots(&data, task.data.draw, 5).unwrap();
    let templates = Templates::new(&task).unwrap();
    let prompt = |at: usize| templates.exercise(&data.rows[at], &solved[at]).unwrap().prompt;
    assert_eq!(prompt(0), FIRST);
    assert_eq!(prompt(1), SECOND);
}

#[test]
fn humaneval_and_mbpp() {
    let record = json!({"task_id": "HumanEval/0", "prompt": "def one():\n    \"\"\"One.\"\"\"\n", "entry_point": "one",
        "canonical_solution": "    return 1\n", "test": "def check(candidate):\n    assert candidate() == 1\n"});
    let task = Task::open("humaneval").unwrap();
    let exercise = Templates::new(&task).unwrap().exercise(&row(None, 0, record), &[]).unwrap();
    assert_eq!(exercise.prompt, "def one():\n    \"\"\"One.\"\"\"\n");
    let trial = exercise.trial.unwrap();
    assert_eq!(trial.solution, exercise.prompt);
    assert_eq!(trial.tests, "def check(candidate):\n    assert candidate() == 1\n\ncheck(one)");
    assert_eq!(task.generate.unwrap().stops, ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]);

    let task = Task::open("mbpp").unwrap();
    let record = json!({"text": "Write one.", "code": "def one():\n  return 1", "test_setup_code": "",
        "test_list": ["assert one() == 1", "assert one() > 0", "assert one()"]});
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("mbpp")).unwrap();
    std::fs::write(folder.path().join("mbpp/mbpp_test500.jsonl"), record.to_string()).unwrap();
    let data = TaskData::read(&task, &[folder.path().to_owned()], true).unwrap();
    let solved = exercise::shots(&data, task.data.draw, task.shots).unwrap();
    let exercise = Templates::new(&task).unwrap().exercise(&data.rows[0], &solved[0]).unwrap();
    let expected = [
        "You are an expert Python programmer, and here is your task: Write a function to find the similar elements from the \
         given two tuple lists. Your code should pass these tests:\n\n\
         assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n\
         assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)\n\
         assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)\n[BEGIN]\n\
         def similar_elements(test_tup1, test_tup2):\r\n  res = tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) \n\
         [DONE]\n\n",
        "You are an expert Python programmer, and here is your task: Write a python function to identify non-prime numbers. \
         Your code should pass these tests:\n\n\
         assert is_not_prime(2) == False\nassert is_not_prime(10) == True\nassert is_not_prime(35) == True\n[BEGIN]\n\
         import math\r\ndef is_not_prime(n):\r\n    result = False\r\n    for i in range(2,int(math.sqrt(n)) + 1):\r\n        \
         if n % i == 0:\r\n            result = True\r\n    return result\n[DONE]\n\n",
        "You are an expert Python programmer, and here is your task: Write a function to find the largest integers from a \
         given list of numbers using heap queue algorithm. Your code should pass these tests:\n\n\
         assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] \n\
         assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] \n\
         assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]\n[BEGIN]\n\
         import heapq as hq\r\ndef heap_queue_largest(nums,n):\r\n  largest_nums = hq.nlargest(n, nums)\r\n  \
         return largest_nums\n[DONE]\n\n",
        "You are an expert Python programmer, and here is your task: Write one. Your code should pass these tests:\n\n\
         assert one() == 1\nassert one() > 0\nassert one()\n[BEGIN]\n",
    ];
    assert_eq!(exercise.prompt, expected.concat());
}
