//! Which language a text is in.
//!
//! The published program asks langdetect, which draws lots and answers differently from run to run. Here it is the crate
//! whatlang: trigrams and scripts, 70 languages, no model files, the same answer every time. It doesn't know Swahili, which
//! two published prompts ask for: that is told by its commonest words. A text without letters passes, as in the published
//! program.

use super::{Arguments, Check};
use whatlang::Lang;

/// The languages that instructions name.
const LANGUAGES: [(&str, Option<Lang>); 34] = [
    ("ar", Some(Lang::Ara)),
    ("bg", Some(Lang::Bul)),
    ("bn", Some(Lang::Ben)),
    ("cs", Some(Lang::Ces)),
    ("de", Some(Lang::Deu)),
    ("el", Some(Lang::Ell)),
    ("en", Some(Lang::Eng)),
    ("es", Some(Lang::Spa)),
    ("fa", Some(Lang::Pes)),
    ("fi", Some(Lang::Fin)),
    ("fr", Some(Lang::Fra)),
    ("gu", Some(Lang::Guj)),
    ("he", Some(Lang::Heb)),
    ("hi", Some(Lang::Hin)),
    ("it", Some(Lang::Ita)),
    ("ja", Some(Lang::Jpn)),
    ("kn", Some(Lang::Kan)),
    ("ko", Some(Lang::Kor)),
    ("ml", Some(Lang::Mal)),
    ("mr", Some(Lang::Mar)),
    ("ne", Some(Lang::Nep)),
    ("nl", Some(Lang::Nld)),
    ("pa", Some(Lang::Pan)),
    ("pl", Some(Lang::Pol)),
    ("pt", Some(Lang::Por)),
    ("ru", Some(Lang::Rus)),
    ("sw", None),
    ("ta", Some(Lang::Tam)),
    ("te", Some(Lang::Tel)),
    ("th", Some(Lang::Tha)),
    ("uk", Some(Lang::Ukr)),
    ("ur", Some(Lang::Urd)),
    ("vi", Some(Lang::Vie)),
    ("zh", Some(Lang::Cmn)),
];

/// Swahili's commonest words that no other of these languages shares as common ones.
const SWAHILI: [&str; 14] =
    ["na", "ya", "wa", "kwa", "ni", "za", "katika", "cha", "kuwa", "hii", "yake", "kama", "lakini", "pia"];
/// The share of them in Swahili text is about a fifth; in the other languages next to nothing.
const SWAHILI_SHARE: f64 = 0.08;

/// The check called `name`.
pub fn check(name: &str, arguments: Arguments<'_>) -> Result<Option<Check>, String> {
    if name != "response_language" {
        return Ok(None);
    }
    let code = arguments.text("language")?;
    let Some((code, _)) = LANGUAGES.iter().find(|(known, _)| *known == code) else {
        return Err(format!("asks for the language `{code}`, which can't be told"));
    };
    Ok(Some(Box::new(|text| is(text, code))))
}

/// Whether `text` is in the language `code`.
pub fn is(text: &str, code: &str) -> bool {
    let Some((_, language)) = LANGUAGES.iter().find(|(known, _)| *known == code) else { return false };
    let detected = whatlang::detect_lang(text);
    match language {
        _ if detected.is_none() => true,
        Some(_) => detected == *language && !is_swahili(text),
        None => is_swahili(text),
    }
}

fn is_swahili(text: &str) -> bool {
    let (mut all, mut known) = (0.0, 0.0);
    for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
        all += 1.0;
        known += f64::from(u8::from(SWAHILI.contains(&word.to_lowercase().as_str())));
    }
    known >= SWAHILI_SHARE * all && known > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::tests::{holds, instruction};
    use serde_json::json;

    /// Ordinary sentences of each language that the published prompts ask for, and of their neighbours.
    const SAMPLES: [(&str, &str); 25] = [
        ("ar", "ذهبت إلى السوق هذا الصباح لشراء الخبز والفواكه، وكان الجو جميلا جدا والناس سعداء."),
        ("bg", "Днес сутринта отидох до пазара, за да купя хляб и плодове, а времето беше много хубаво."),
        ("bn", "আমি আজ সকালে রুটি ও ফল কিনতে বাজারে গিয়েছিলাম এবং আবহাওয়া খুব সুন্দর ছিল।"),
        ("de", "Heute Morgen bin ich auf den Markt gegangen, um Brot und Obst zu kaufen, und das Wetter war schön."),
        ("en", "This morning I went to the market to buy bread and fruit, and the weather was very nice."),
        ("es", "Esta mañana fui al mercado para comprar pan y fruta, y el tiempo era muy agradable para todos."),
        ("fa", "امروز صبح برای خریدن نان و میوه به بازار رفتم و هوا بسیار خوب بود و مردم خوشحال بودند."),
        ("fi", "Tänä aamuna menin torille ostamaan leipää ja hedelmiä, ja sää oli todella kaunis kaikille."),
        ("fr", "Ce matin je suis allé au marché pour acheter du pain et des fruits, et il faisait très beau."),
        ("gu", "આજે સવારે હું રોટલી અને ફળો ખરીદવા બજારમાં ગયો હતો અને હવામાન ખૂબ સારું હતું."),
        ("hi", "आज सुबह मैं रोटी और फल खरीदने के लिए बाजार गया था और मौसम बहुत अच्छा था।"),
        ("it", "Questa mattina sono andato al mercato per comprare il pane e la frutta, e il tempo era bello."),
        ("kn", "ಇಂದು ಬೆಳಿಗ್ಗೆ ನಾನು ಬ್ರೆಡ್ ಮತ್ತು ಹಣ್ಣುಗಳನ್ನು ಖರೀದಿಸಲು ಮಾರುಕಟ್ಟೆಗೆ ಹೋಗಿದ್ದೆ."),
        ("ko", "오늘 아침에 나는 빵과 과일을 사러 시장에 갔는데 날씨가 아주 좋았습니다."),
        ("mr", "आज सकाळी मी भाकरी आणि फळे विकत घेण्यासाठी बाजारात गेलो होतो आणि हवामान खूप छान होते."),
        ("ne", "आज बिहान म रोटी र फलफूल किन्नको लागि बजार गएको थिएँ र मौसम धेरै राम्रो थियो।"),
        ("pa", "ਅੱਜ ਸਵੇਰੇ ਮੈਂ ਰੋਟੀ ਅਤੇ ਫਲ ਖਰੀਦਣ ਲਈ ਬਾਜ਼ਾਰ ਗਿਆ ਸੀ ਅਤੇ ਮੌਸਮ ਬਹੁਤ ਵਧੀਆ ਸੀ।"),
        ("pt", "Hoje de manhã fui ao mercado para comprar pão e frutas, e o tempo estava muito bom para todos."),
        ("ru", "Сегодня утром я пошёл на рынок, чтобы купить хлеб и фрукты, и погода была очень хорошей."),
        ("sw", "Leo asubuhi nilikwenda sokoni kununua mkate na matunda, na hali ya hewa ilikuwa nzuri kwa watu wote."),
        ("ta", "இன்று காலை நான் ரொட்டி மற்றும் பழங்கள் வாங்க சந்தைக்குச் சென்றேன்."),
        ("te", "ఈ రోజు ఉదయం నేను రొట్టె మరియు పండ్లు కొనడానికి మార్కెట్‌కు వెళ్లాను."),
        ("th", "เช้านี้ฉันไปตลาดเพื่อซื้อขนมปังและผลไม้ และอากาศดีมาก"),
        ("ur", "آج صبح میں روٹی اور پھل خریدنے کے لیے بازار گیا تھا اور موسم بہت اچھا تھا۔"),
        ("vi", "Sáng nay tôi đi chợ để mua bánh mì và trái cây, và thời tiết rất đẹp cho mọi người."),
    ];

    #[test]
    fn response_language() {
        for (language, text) in SAMPLES {
            let told: Vec<&str> = SAMPLES.iter().map(|(code, _)| *code).filter(|code| is(text, code)).collect();
            assert_eq!(told, [language], "{text}");
        }
        let korean = json!({"language": "ko"});
        assert_eq!(
            holds("language:response_language", korean, [SAMPLES[13].1, SAMPLES[4].1, "42"]),
            [true, false, true]
        );
        let error = instruction("language:response_language", json!({"language": "tlh"})).check().err().unwrap();
        assert!(error.contains("`tlh`"), "{error}");
    }
}
