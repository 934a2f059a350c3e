"""Question and passage templates of the embedded corpus, by relation and language.

``{s}`` is the subject's name and ``{o}`` the object's. The CLDR gives names in the nominative and without
articles, so no template asks for another case: a name stands beside a colon, in quotation marks or as an
apposition ("die Währung {s}") wherever the language would inflect it.
"""

from __future__ import annotations

__all__ = ["TEMPLATES"]

# relation -> language -> (questions, passages)
TEMPLATES: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "territory_currency": {
        "ar": (
            [
                "ما هي العملة الرسمية في {s}؟",
                "بأي عملة يدفع الناس في {s}؟",
                "ما العملة القانونية المتداولة في {s}؟",
            ],
            ["العملة الرسمية في {s} هي {o}.", "يدفع الناس في {s} بالعملة المسماة {o}."],
        ),
        "de": (
            [
                "{s}: Welche offizielle Währung gilt dort?",
                "{s}: Mit welcher Währung bezahlt man dort?",
                "Wie heißt die Währung in diesem Land oder Gebiet: {s}?",
            ],
            ["{s}: Die offizielle Währung heißt {o}.", "{s}: Bezahlt wird dort mit der Währung {o}."],
        ),
        "el": (
            [
                "{s}: ποιο είναι το επίσημο νόμισμα;",
                "{s}: με ποιο νόμισμα πληρώνει κανείς εκεί;",
                "Ποιο νόμισμα χρησιμοποιείται στην ακόλουθη χώρα ή περιοχή: {s};",
            ],
            ["{s} – επίσημο νόμισμα: {o}.", "{s}: οι πληρωμές γίνονται εκεί με το νόμισμα «{o}»."],
        ),
        "en": (
            [
                "What is the official currency of {s}?",
                "Which currency do people pay with in {s}?",
                "What money is legal tender in {s}?",
            ],
            ["The official currency of {s} is the {o}.", "In {s}, people pay with the {o}."],
        ),
        "es": (
            [
                "¿Cuál es la moneda oficial de {s}?",
                "¿Con qué moneda se paga en {s}?",
                "¿Qué moneda es de curso legal en {s}?",
            ],
            ["La moneda oficial de {s} se llama {o}.", "En {s} se paga con la moneda llamada {o}."],
        ),
        "hi": (
            [
                "{s} की आधिकारिक मुद्रा क्या है?",
                "{s} में भुगतान के लिए कौन-सी मुद्रा चलती है?",
                "{s} में कौन-सी मुद्रा कानूनी रूप से मान्य है?",
            ],
            ["{s} की आधिकारिक मुद्रा {o} है।", "{s} में जो मुद्रा चलती है, उसका नाम {o} है।"],
        ),
        "ru": (
            [
                "{s}: какая там официальная валюта?",
                "{s}: какой валютой там расплачиваются?",
                "Как называется валюта страны или территории «{s}»?",
            ],
            ["{s}: официальная валюта — {o}.", "{s}: расплачиваются там валютой «{o}»."],
        ),
        "th": (
            ["สกุลเงินทางการของ{s}คืออะไร", "ที่{s}ใช้เงินสกุลใด", "{s}ใช้สกุลเงินอะไรในการชำระเงิน"],
            ["สกุลเงินทางการของ{s}คือ{o}", "ที่{s}ผู้คนชำระเงินด้วยสกุลเงิน{o}"],
        ),
        "tr": (
            [
                "{s} için resmi para birimi nedir?",
                "{s}: Burada hangi para birimiyle ödeme yapılır?",
                "{s} adlı ülke ya da bölgede hangi para birimi geçerlidir?",
            ],
            [
                "{s} için resmi para birimi {o} olarak belirlenmiştir.",
                "{s}: Burada ödemeler {o} ile yapılır.",
            ],
        ),
        "vi": (
            [
                "Đơn vị tiền tệ chính thức của {s} là gì?",
                "Ở {s}, người ta thanh toán bằng loại tiền nào?",
                "{s} sử dụng đồng tiền nào?",
            ],
            ["Đơn vị tiền tệ chính thức của {s} là {o}.", "Ở {s}, người ta thanh toán bằng {o}."],
        ),
        "zh": (
            ["{s}的官方货币是什么？", "在{s}用哪种货币付款？", "{s}的法定货币叫什么？"],
            ["{s}的官方货币是{o}。", "在{s}，人们用{o}付款。"],
        ),
    },
    "territory_languages": {
        "ar": (
            [
                "ما هي اللغة الرسمية في {s}؟",
                "بأي لغة تعمل الدوائر الحكومية في {s}؟",
                "أي لغة لها صفة رسمية في {s}؟",
            ],
            ["اللغة الرسمية في {s} هي {o}.", "تعمل الدوائر الحكومية في {s} باللغة التالية: {o}."],
        ),
        "de": (
            [
                "{s}: Welche Amtssprache gilt dort?",
                "{s}: In welcher Sprache arbeiten dort die Behörden?",
                "Was ist die Amtssprache in diesem Land oder Gebiet: {s}?",
            ],
            ["{s}: Als Amtssprache dient {o}.", "{s}: Die Behörden arbeiten dort auf {o}."],
        ),
        "el": (
            [
                "{s}: ποια είναι η επίσημη γλώσσα;",
                "{s}: σε ποια γλώσσα λειτουργούν οι δημόσιες αρχές;",
                "Ποια γλώσσα είναι επίσημη στην ακόλουθη χώρα ή περιοχή: {s};",
            ],
            ["{s} – επίσημη γλώσσα: {o}.", "{s}: οι δημόσιες αρχές χρησιμοποιούν τα {o}."],
        ),
        "en": (
            [
                "What is the official language of {s}?",
                "Which languages are official in {s}?",
                "In which language is official business conducted in {s}?",
            ],
            [
                "Official language status in {s} is held by {o}.",
                "In {s}, official business is conducted in {o}.",
            ],
        ),
        "es": (
            [
                "¿Cuál es la lengua oficial de {s}?",
                "¿Qué idioma tiene carácter oficial en {s}?",
                "¿En qué idioma trabaja la administración pública de {s}?",
            ],
            [
                "En {s} se emplea como lengua oficial: {o}.",
                "La administración pública de {s} trabaja en {o}.",
            ],
        ),
        "hi": (
            [
                "{s} की आधिकारिक भाषा क्या है?",
                "{s} में राजकाज किस भाषा में होता है?",
                "{s} में किस भाषा को सरकारी दर्जा मिला है?",
            ],
            ["{s} की आधिकारिक भाषा {o} है।", "{s} में राजकाज {o} में होता है।"],
        ),
        "ru": (
            [
                "{s}: какой язык там официальный?",
                "{s}: на каком языке там работают государственные органы?",
                "Какой язык имеет официальный статус в стране или на территории «{s}»?",
            ],
            ["{s}: официальный язык — {o}.", "{s}: язык государственных органов там {o}."],
        ),
        "th": (
            [
                "ภาษาทางการของ{s}คือภาษาอะไร",
                "หน่วยงานราชการใน{s}ใช้ภาษาใด",
                "{s}ใช้ภาษาใดเป็นภาษาทางการ",
            ],
            ["ภาษาทางการของ{s}คือภาษา{o}", "หน่วยงานราชการใน{s}ใช้ภาษา{o}"],
        ),
        "tr": (
            [
                "{s} için resmi dil hangisidir?",
                "{s}: Devlet kurumları burada hangi dili kullanır?",
                "{s} adlı ülke ya da bölgede resmi dil nedir?",
            ],
            ["{s} için resmi dil {o} olarak kabul edilir.", "{s}: Devlet kurumlarının kullandığı dil: {o}."],
        ),
        "vi": (
            [
                "Ngôn ngữ chính thức của {s} là gì?",
                "Cơ quan nhà nước ở {s} sử dụng ngôn ngữ nào?",
                "Ở {s}, ngôn ngữ nào có địa vị chính thức?",
            ],
            ["Ngôn ngữ chính thức của {s} là {o}.", "Cơ quan nhà nước ở {s} sử dụng {o}."],
        ),
        "zh": (
            ["{s}的官方语言是什么？", "{s}的政府机关使用哪种语言？", "在{s}，哪种语言具有官方地位？"],
            ["{s}的官方语言是{o}。", "{s}的政府机关使用{o}。"],
        ),
    },
    "territory_week": {
        "ar": (
            ["في أي يوم يبدأ الأسبوع في {s}؟", "ما هو أول أيام الأسبوع في {s}؟"],
            ["أول أيام الأسبوع في {s} هو يوم {o}.", "يبدأ الأسبوع في {s} يوم {o}."],
        ),
        "de": (
            [
                "{s}: An welchem Tag beginnt dort die Woche?",
                "{s}: Welcher Wochentag steht dort im Kalender an erster Stelle?",
            ],
            ["{s}: Die Woche beginnt dort am {o}.", "{s}: Im Kalender steht als erster Wochentag der {o}."],
        ),
        "el": (
            [
                "{s}: ποια ημέρα αρχίζει εκεί η εβδομάδα;",
                "{s}: ποια είναι η πρώτη ημέρα της εβδομάδας στο ημερολόγιο;",
            ],
            ["{s} – πρώτη ημέρα της εβδομάδας: {o}.", "{s}: η εβδομάδα αρχίζει εκεί με την ημέρα «{o}»."],
        ),
        "en": (
            ["On which day does the week begin in {s}?", "Which weekday comes first on calendars in {s}?"],
            ["In {s}, the week begins on {o}.", "The first weekday on calendars in {s} is {o}."],
        ),
        "es": (
            [
                "¿Qué día empieza la semana en {s}?",
                "¿Cuál es el primer día de la semana en los calendarios de {s}?",
            ],
            [
                "En {s} la semana empieza el {o}.",
                "En los calendarios de {s}, el primer día de la semana es el {o}.",
            ],
        ),
        "hi": (
            ["{s} में सप्ताह किस दिन शुरू होता है?", "{s} के कैलेंडर में सप्ताह का पहला दिन कौन-सा है?"],
            ["{s} में सप्ताह {o} को शुरू होता है।", "{s} के कैलेंडर में सप्ताह का पहला दिन {o} है।"],
        ),
        "ru": (
            [
                "{s}: с какого дня там начинается неделя?",
                "{s}: какой день недели стоит в календаре первым?",
            ],
            ["{s}: первый день недели — {o}.", "{s}: первым в календаре там стоит {o}."],
        ),
        "th": (
            ["ใน{s}สัปดาห์เริ่มต้นวันใด", "วันแรกของสัปดาห์ตามปฏิทินใน{s}คือวันอะไร"],
            ["ใน{s}สัปดาห์เริ่มต้น{o}", "วันแรกของสัปดาห์ตามปฏิทินใน{s}คือ{o}"],
        ),
        "tr": (
            ["{s} için haftanın ilk günü hangisidir?", "{s}: Burada hafta hangi gün başlar?"],
            ["{s} için haftanın ilk günü {o} sayılır.", "{s}: Burada hafta {o} günü başlar."],
        ),
        "vi": (
            ["Ở {s}, tuần bắt đầu vào ngày nào?", "Ngày đầu tuần trên lịch ở {s} là ngày nào?"],
            ["Ở {s}, tuần bắt đầu vào {o}.", "Ngày đầu tuần trên lịch ở {s} là {o}."],
        ),
        "zh": (
            ["在{s}，一周从哪一天开始？", "{s}的日历以星期几为每周第一天？"],
            ["在{s}，一周从{o}开始。", "{s}的日历以{o}为每周第一天。"],
        ),
    },
    "territory_code": {
        "ar": (
            ["ما هو الرمز المكوَّن من حرفين للبلد أو الإقليم {s}؟", "بأي حرفين لاتينيين يُختصر اسم {s}؟"],
            ["الرمز المكوَّن من حرفين للبلد أو الإقليم {s} هو {o}.", "يُختصر اسم {s} بالحرفين {o}."],
        ),
        "de": (
            [
                "{s}: Wie lautet der zweibuchstabige Ländercode?",
                "{s}: Mit welchen zwei Buchstaben wird der Name abgekürzt?",
            ],
            ["{s}: Der zweibuchstabige Ländercode lautet {o}.", "{s}: Abgekürzt wird der Name mit {o}."],
        ),
        "el": (
            [
                "{s}: ποιος είναι ο κωδικός χώρας με δύο γράμματα;",
                "Με ποια δύο γράμματα συντομεύεται το όνομα «{s}»;",
            ],
            ["{s} – κωδικός χώρας με δύο γράμματα: {o}.", "Το όνομα «{s}» συντομεύεται με τα γράμματα {o}."],
        ),
        "en": (
            ["What is the two-letter country code of {s}?", "Which two letters abbreviate {s}?"],
            ["The two-letter country code of {s} is {o}.", "The letters {o} abbreviate {s}."],
        ),
        "es": (
            [
                "¿Cuál es el código de país de dos letras de {s}?",
                "¿Con qué dos letras se abrevia el nombre de {s}?",
            ],
            [
                "El código de país de dos letras de {s} es {o}.",
                "El nombre de {s} se abrevia con las letras {o}.",
            ],
        ),
        "hi": (
            ["{s} का दो अक्षरों वाला देश कोड क्या है?", "{s} का नाम किन दो अक्षरों से संक्षिप्त किया जाता है?"],
            ["{s} का दो अक्षरों वाला देश कोड {o} है।", "{s} का नाम {o} अक्षरों से संक्षिप्त किया जाता है।"],
        ),
        "ru": (
            [
                "{s}: какой у этой страны или территории двухбуквенный код?",
                "Какими двумя буквами сокращают название «{s}»?",
            ],
            ["{s}: двухбуквенный код страны — {o}.", "Название «{s}» сокращают буквами {o}."],
        ),
        "th": (
            ["รหัสประเทศสองตัวอักษรของ{s}คืออะไร", "ชื่อ{s}ย่อด้วยตัวอักษรสองตัวใด"],
            ["รหัสประเทศสองตัวอักษรของ{s}คือ {o}", "ชื่อ{s}ย่อด้วยตัวอักษร {o}"],
        ),
        "tr": (
            ["{s} için iki harfli ülke kodu nedir?", "{s} adı hangi iki harfle kısaltılır?"],
            [
                "{s} için iki harfli ülke kodu {o} olarak belirlenmiştir.",
                "{s} adı {o} harfleriyle kısaltılır.",
            ],
        ),
        "vi": (
            ["Mã quốc gia hai chữ cái của {s} là gì?", "Tên {s} được viết tắt bằng hai chữ cái nào?"],
            ["Mã quốc gia hai chữ cái của {s} là {o}.", "Tên {s} được viết tắt bằng hai chữ cái {o}."],
        ),
        "zh": (
            ["{s}的两位字母代码是什么？", "{s}的名称用哪两个字母缩写？"],
            ["{s}的两位字母代码是{o}。", "{s}的名称缩写为{o}。"],
        ),
    },
    "city_territory": {
        "ar": (
            [
                "في أي بلد أو إقليم يقع المكان المسمى {s}؟",
                "أين يوجد المكان المعروف باسم {s}؟",
                "إلى أي بلد أو إقليم ينتمي المكان المسمى {s}؟",
            ],
            ["يقع المكان المسمى {s} في {o}.", "{s} اسم مكان ينتمي إلى {o}."],
        ),
        "de": (
            [
                "In welchem Land oder Gebiet liegt der Ort {s}?",
                "Wo liegt der Ort {s}?",
                "Zu welchem Land oder Gebiet gehört der Ort {s}?",
            ],
            [
                "Der Ort {s} liegt in folgendem Land oder Gebiet: {o}.",
                "{s} ist ein Ort, der zu diesem Land oder Gebiet gehört: {o}.",
            ],
        ),
        "el": (
            [
                "Σε ποια χώρα ή περιοχή βρίσκεται ο τόπος «{s}»;",
                "Πού βρίσκεται ο τόπος «{s}»;",
                "Σε ποια χώρα ή περιοχή ανήκει ο τόπος με το όνομα {s};",
            ],
            [
                "Ο τόπος «{s}» βρίσκεται στην εξής χώρα ή περιοχή: {o}.",
                "{s}: ο τόπος αυτός ανήκει στην ακόλουθη χώρα ή περιοχή: {o}.",
            ],
        ),
        "en": (
            [
                "In which country or territory is {s}?",
                "Where is {s} located?",
                "Which country or territory does {s} belong to?",
            ],
            ["{s} is located in {o}.", "{s} is a place that belongs to {o}."],
        ),
        "es": (
            [
                "¿En qué país o territorio está {s}?",
                "¿Dónde se encuentra {s}?",
                "¿A qué país o territorio pertenece {s}?",
            ],
            ["{s} se encuentra en {o}.", "{s} es un lugar que pertenece a {o}."],
        ),
        "hi": (
            [
                "{s} किस देश या क्षेत्र में है?",
                "{s} कहाँ स्थित है?",
                "{s} नाम का स्थान किस देश या क्षेत्र का हिस्सा है?",
            ],
            ["{s} {o} में स्थित है।", "{s} नाम का स्थान {o} का हिस्सा है।"],
        ),
        "ru": (
            [
                "В какой стране или на какой территории находится место «{s}»?",
                "Где находится место под названием {s}?",
                "{s}: к какой стране или территории относится это место?",
            ],
            [
                "Место под названием {s} находится в стране или на территории «{o}».",
                "{s}: это место относится к стране или территории «{o}».",
            ],
        ),
        "th": (
            ["{s}อยู่ในประเทศหรือดินแดนใด", "{s}ตั้งอยู่ที่ไหน", "{s}เป็นสถานที่ในประเทศหรือดินแดนใด"],
            ["{s}ตั้งอยู่ใน{o}", "{s}เป็นสถานที่แห่งหนึ่งใน{o}"],
        ),
        "tr": (
            [
                "{s} hangi ülkede ya da bölgededir?",
                "{s} nerede bulunur?",
                "{s} adlı yer hangi ülkeye ya da bölgeye aittir?",
            ],
            ["{s} şu ülkede ya da bölgede bulunur: {o}.", "{s} adlı yerin ait olduğu ülke ya da bölge: {o}."],
        ),
        "vi": (
            [
                "{s} nằm ở quốc gia hoặc vùng lãnh thổ nào?",
                "{s} ở đâu?",
                "Địa danh {s} thuộc quốc gia hoặc vùng lãnh thổ nào?",
            ],
            ["{s} nằm ở {o}.", "Địa danh {s} thuộc {o}."],
        ),
        "zh": (
            ["{s}位于哪个国家或地区？", "{s}在哪里？", "{s}属于哪个国家或地区？"],
            ["{s}位于{o}。", "{s}是{o}的一个地方。"],
        ),
    },
    "city_zone": {
        "ar": (
            [
                "في أي منطقة زمنية يقع المكان المسمى {s}؟",
                "على أي توقيت تُضبط الساعات في {s}؟",
                "ما هي المنطقة الزمنية المتبعة في {s}؟",
            ],
            ["المنطقة الزمنية المتبعة في {s} هي {o}.", "تُضبط الساعات في {s} على {o}."],
        ),
        "de": (
            [
                "In welcher Zeitzone liegt der Ort {s}?",
                "{s}: Nach welcher Zeit gehen dort die Uhren?",
                "Wie heißt die Zeitzone des Ortes {s}?",
            ],
            ["Der Ort {s} liegt in der Zeitzone „{o}“.", "{s}: Die Uhren zeigen dort diese Zeit an: {o}."],
        ),
        "el": (
            [
                "Σε ποια ζώνη ώρας βρίσκεται ο τόπος «{s}»;",
                "{s}: ποια ώρα ακολουθούν εκεί τα ρολόγια;",
                "Ποια ζώνη ώρας ισχύει σε αυτόν τον τόπο: {s};",
            ],
            [
                "Ο τόπος «{s}» βρίσκεται στη ζώνη ώρας «{o}».",
                "{s}: τα ρολόγια εκεί ακολουθούν την εξής ώρα: {o}.",
            ],
        ),
        "en": (
            [
                "Which time zone is {s} in?",
                "What is the time shown by clocks in {s} called?",
                "By which standard time are clocks set in {s}?",
            ],
            ["{s} is in the time zone called {o}.", "Clocks in {s} are set to {o}."],
        ),
        "es": (
            [
                "¿En qué zona horaria está {s}?",
                "¿Por qué hora se rigen los relojes de {s}?",
                "¿Cuál es el huso horario de {s}?",
            ],
            ["{s} está en la zona horaria denominada {o}.", "Los relojes de {s} se rigen por la {o}."],
        ),
        "hi": (
            [
                "{s} किस समय क्षेत्र में आता है?",
                "{s} की घड़ियाँ किस समय के अनुसार चलती हैं?",
                "{s} का समय क्षेत्र क्या है?",
            ],
            ["{s} का समय क्षेत्र {o} है।", "{s} की घड़ियाँ {o} के अनुसार चलती हैं।"],
        ),
        "ru": (
            [
                "В каком часовом поясе находится место «{s}»?",
                "{s}: по какому времени там живут?",
                "{s}: как называется местный часовой пояс?",
            ],
            ["{s}: часовой пояс — {o}.", "{s}: часы там показывают время «{o}»."],
        ),
        "th": (
            ["{s}อยู่ในเขตเวลาใด", "นาฬิกาใน{s}เดินตามเวลาใด", "เขตเวลาของ{s}คืออะไร"],
            ["{s}อยู่ในเขตเวลาที่เรียกว่า{o}", "นาฬิกาใน{s}เดินตาม{o}"],
        ),
        "tr": (
            [
                "{s} hangi saat dilimindedir?",
                "{s}: Burada saatler hangi saate göre ayarlanır?",
                "{s} için geçerli saat dilimi nedir?",
            ],
            [
                "{s} için geçerli saat dilimi {o} olarak adlandırılır.",
                "{s}: Burada saatlerin gösterdiği dilim: {o}.",
            ],
        ),
        "vi": (
            ["{s} thuộc múi giờ nào?", "Đồng hồ ở {s} chạy theo giờ nào?", "Múi giờ của {s} là gì?"],
            ["{s} thuộc múi giờ có tên là {o}.", "Đồng hồ ở {s} chạy theo {o}."],
        ),
        "zh": (
            ["{s}位于哪个时区？", "{s}的时钟采用什么时间？", "{s}使用哪个标准时间？"],
            ["{s}采用的时区是{o}。", "{s}的时钟显示{o}。"],
        ),
    },
    "language_script": {
        "ar": (
            ["بأي كتابة تُكتب {s}؟", "ما هو نظام الكتابة المستخدم في {s}؟", "بأي حروف أو رموز تُدوَّن {s}؟"],
            ["تُكتب {s} عادةً بهذه الكتابة: {o}.", "الكتابة المستخدمة في {s} هي {o}."],
        ),
        "de": (
            [
                "In welcher Schrift wird die Sprache {s} geschrieben?",
                "Welches Schriftsystem verwendet die Sprache {s}?",
                "Mit welchen Schriftzeichen schreibt man {s}?",
            ],
            [
                "{s} schreibt man gewöhnlich in dieser Schrift: {o}.",
                "Das Schriftsystem der Sprache {s} ist: {o}.",
            ],
        ),
        "el": (
            [
                "Με ποια γραφή γράφεται η γλώσσα «{s}»;",
                "Ποιο σύστημα γραφής χρησιμοποιούν τα {s};",
                "Με ποια γράμματα ή σύμβολα γράφονται τα {s};",
            ],
            [
                "Η γλώσσα «{s}» γράφεται συνήθως με το εξής σύστημα: {o}.",
                "{s} – σύστημα γραφής της γλώσσας: {o}.",
            ],
        ),
        "en": (
            [
                "Which script is {s} written in?",
                "What writing system does the {s} language use?",
                "Which letters or signs are used to write {s}?",
            ],
            ["{s} is usually written in the {o} script.", "The writing system of the {s} language is {o}."],
        ),
        "es": (
            [
                "¿En qué escritura se escribe el idioma {s}?",
                "¿Qué sistema de escritura usa el idioma {s}?",
                "¿Con qué letras o signos se escribe el idioma {s}?",
            ],
            [
                "El idioma {s} se escribe normalmente con este sistema: {o}.",
                "El sistema de escritura del idioma {s} es el {o}.",
            ],
        ),
        "hi": (
            [
                "{s} भाषा किस लिपि में लिखी जाती है?",
                "{s} भाषा की लेखन प्रणाली क्या है?",
                "{s} भाषा लिखने के लिए कौन-सी लिपि काम आती है?",
            ],
            ["{s} भाषा आम तौर पर {o} लिपि में लिखी जाती है।", "{s} भाषा की लेखन प्रणाली {o} लिपि है।"],
        ),
        "ru": (
            [
                "Каким письмом пользуется язык «{s}»?",
                "Какая письменность у языка «{s}»?",
                "Какими буквами или знаками пишут на языке «{s}»?",
            ],
            ["Письменность языка «{s}» — {o}.", "У языка «{s}» обычно такая письменность: {o}."],
        ),
        "th": (
            ["ภาษา{s}เขียนด้วยอักษรใด", "ภาษา{s}ใช้ระบบการเขียนแบบใด", "ผู้คนเขียนภาษา{s}ด้วยตัวหนังสือแบบใด"],
            ["ภาษา{s}มักเขียนด้วยอักษร{o}", "ระบบการเขียนของภาษา{s}คืออักษร{o}"],
        ),
        "tr": (
            [
                "{s} hangi yazıyla yazılır?",
                "{s} için kullanılan yazı sistemi nedir?",
                "{s} hangi harf ya da işaretlerle yazılır?",
            ],
            ["{s} genellikle {o} yazısıyla yazılır.", "{s} için kullanılan yazı sistemi: {o}."],
        ),
        "vi": (
            [
                "{s} được viết bằng chữ gì?",
                "Hệ chữ viết của {s} là gì?",
                "Người ta dùng loại chữ nào để viết {s}?",
            ],
            ["{s} thường được viết bằng {o}.", "Hệ chữ viết của {s} là {o}."],
        ),
        "zh": (
            ["{s}用什么文字书写？", "{s}使用哪种书写系统？", "人们用哪种文字写{s}？"],
            ["{s}通常用{o}书写。", "{s}的书写系统是{o}。"],
        ),
    },
    "language_territory": {
        "ar": (
            [
                "بأي بلد أو إقليم ترتبط {s} أكثر من غيره؟",
                "أين تنتشر {s} بصورة رئيسية؟",
                "ما هو البلد أو الإقليم الرئيسي الذي توجد فيه {s}؟",
            ],
            ["ترتبط {s} بهذا البلد أو الإقليم أكثر من غيره: {o}.", "تنتشر {s} بصورة رئيسية في {o}."],
        ),
        "de": (
            [
                "Mit welchem Land oder Gebiet verbindet man die Sprache {s} am ehesten?",
                "Wo ist die Sprache {s} vor allem verbreitet?",
                "Was ist das wichtigste Verbreitungsgebiet der Sprache {s}?",
            ],
            [
                "Die Sprache {s} verbindet man am ehesten mit diesem Land oder Gebiet: {o}.",
                "Das wichtigste Verbreitungsgebiet der Sprache {s} ist: {o}.",
            ],
        ),
        "el": (
            [
                "Με ποια χώρα ή περιοχή συνδέεται κυρίως η γλώσσα «{s}»;",
                "Πού είναι κυρίως διαδεδομένη η γλώσσα «{s}»;",
                "Ποιος είναι ο κύριος τόπος εξάπλωσης της γλώσσας «{s}»;",
            ],
            [
                "Η γλώσσα «{s}» συνδέεται κυρίως με την εξής χώρα ή περιοχή: {o}.",
                "Κύριος τόπος εξάπλωσης της γλώσσας «{s}»: {o}.",
            ],
        ),
        "en": (
            [
                "Which country or territory is the {s} language most closely associated with?",
                "Where is the {s} language chiefly found?",
                "What is the main area of {s}?",
            ],
            [
                "The {s} language is most closely associated with {o}.",
                "The {s} language is chiefly found in {o}.",
            ],
        ),
        "es": (
            [
                "¿Con qué país o territorio se asocia sobre todo el idioma {s}?",
                "¿Cuál es el territorio principal del idioma {s}?",
                "¿En qué país o territorio está más presente el idioma {s}?",
            ],
            ["El idioma {s} se asocia sobre todo con {o}.", "El territorio principal del idioma {s} es {o}."],
        ),
        "hi": (
            [
                "{s} भाषा मुख्य रूप से किस देश या क्षेत्र से जुड़ी है?",
                "{s} भाषा मुख्य रूप से कहाँ प्रचलित है?",
                "{s} भाषा का प्रमुख क्षेत्र कौन-सा है?",
            ],
            ["{s} भाषा मुख्य रूप से {o} से जुड़ी है।", "{s} भाषा मुख्य रूप से {o} में प्रचलित है।"],
        ),
        "ru": (
            [
                "С какой страной или территорией прежде всего связан язык «{s}»?",
                "Где прежде всего распространён язык «{s}»?",
                "Какова главная территория распространения языка «{s}»?",
            ],
            [
                "Язык «{s}» прежде всего связан со страной или территорией «{o}».",
                "Главная территория распространения языка «{s}» — {o}.",
            ],
        ),
        "th": (
            [
                "ภาษา{s}ผูกพันกับประเทศหรือดินแดนใดมากที่สุด",
                "ถิ่นหลักของภาษา{s}อยู่ที่ใด",
                "ภาษา{s}แพร่หลายที่ใดเป็นหลัก",
            ],
            ["ภาษา{s}ผูกพันกับ{o}มากที่สุด", "ถิ่นหลักของภาษา{s}อยู่ที่{o}"],
        ),
        "tr": (
            [
                "{s} en çok hangi ülke ya da bölgeyle ilişkilendirilir?",
                "{s} başlıca nerede yaygındır?",
                "{s} için başlıca yayılma alanı neresidir?",
            ],
            [
                "{s} en çok şu ülke ya da bölgeyle ilişkilendirilir: {o}.",
                "{s} için başlıca yayılma alanı {o} sayılır.",
            ],
        ),
        "vi": (
            [
                "{s} gắn liền nhất với quốc gia hoặc vùng lãnh thổ nào?",
                "Địa bàn chính của {s} là ở đâu?",
                "{s} phổ biến chủ yếu ở đâu?",
            ],
            ["{s} gắn liền nhất với {o}.", "Địa bàn chính của {s} là {o}."],
        ),
        "zh": (
            ["{s}与哪个国家或地区关系最密切？", "{s}主要分布在哪里？", "{s}主要通行于哪个国家或地区？"],
            ["{s}与{o}的关系最密切。", "{s}主要分布在{o}。"],
        ),
    },
    "language_code": {
        "ar": (
            ["ما هو الرمز المعياري للغة المسماة {s}؟", "كيف تُختصر {s} في قائمة رموز اللغات؟"],
            ["الرمز المعياري للغة المسماة {s} هو {o}.", "تُختصر {s} في قائمة رموز اللغات بالرمز {o}."],
        ),
        "de": (
            [
                "Wie lautet der Sprachcode für {s}?",
                "Wie kürzt man die Sprache {s} in der Liste der Sprachcodes ab?",
            ],
            [
                "Der Sprachcode für {s} lautet {o}.",
                "Die Sprache {s} kürzt man in der Liste der Sprachcodes mit {o} ab.",
            ],
        ),
        "el": (
            [
                "Ποιος είναι ο κωδικός της γλώσσας «{s}»;",
                "Πώς συντομεύεται η γλώσσα «{s}» στη λίστα κωδικών γλωσσών;",
            ],
            [
                "Ο κωδικός της γλώσσας «{s}» είναι {o}.",
                "Στη λίστα κωδικών γλωσσών η γλώσσα «{s}» συντομεύεται ως {o}.",
            ],
        ),
        "en": (
            [
                "What is the language code of {s}?",
                "How is the {s} language abbreviated in lists of language codes?",
            ],
            [
                "The language code of {s} is {o}.",
                "Lists of language codes abbreviate the {s} language as {o}.",
            ],
        ),
        "es": (
            [
                "¿Cuál es el código del idioma {s}?",
                "¿Cómo se abrevia el idioma {s} en las listas de códigos de lenguas?",
            ],
            [
                "El código del idioma {s} es {o}.",
                "En las listas de códigos de lenguas, el idioma {s} se abrevia {o}.",
            ],
        ),
        "hi": (
            ["{s} भाषा का कोड क्या है?", "भाषा कोड की सूची में {s} को कैसे संक्षिप्त किया जाता है?"],
            ["{s} भाषा का कोड {o} है।", "भाषा कोड की सूची में {s} को {o} लिखकर संक्षिप्त किया जाता है।"],
        ),
        "ru": (
            ["Какой код у языка «{s}»?", "Как язык «{s}» сокращают в списках языковых кодов?"],
            ["Код языка «{s}» — {o}.", "В списках языковых кодов язык «{s}» сокращают как {o}."],
        ),
        "th": (
            ["รหัสภาษาของภาษา{s}คืออะไร", "ในรายการรหัสภาษา ภาษา{s}ย่อว่าอะไร"],
            ["รหัสภาษาของภาษา{s}คือ {o}", "ในรายการรหัสภาษา ภาษา{s}ย่อว่า {o}"],
        ),
        "tr": (
            ["{s} için dil kodu nedir?", "{s} dil kodları listesinde nasıl kısaltılır?"],
            [
                "{s} için dil kodu {o} olarak belirlenmiştir.",
                "{s} dil kodları listesinde {o} olarak kısaltılır.",
            ],
        ),
        "vi": (
            ["Mã ngôn ngữ của {s} là gì?", "Trong danh sách mã ngôn ngữ, {s} được viết tắt thế nào?"],
            ["Mã ngôn ngữ của {s} là {o}.", "Trong danh sách mã ngôn ngữ, {s} được viết tắt là {o}."],
        ),
        "zh": (
            ["{s}的语言代码是什么？", "在语言代码表中，{s}怎样缩写？"],
            ["{s}的语言代码是{o}。", "在语言代码表中，{s}缩写为{o}。"],
        ),
    },
    "currency_code": {
        "ar": (
            [
                "ما هو الرمز الدولي المكوَّن من ثلاثة أحرف للعملة {s}؟",
                "كيف تُختصر العملة {s} في التعاملات المصرفية؟",
            ],
            [
                "الرمز الدولي المكوَّن من ثلاثة أحرف للعملة {s} هو {o}.",
                "تُختصر العملة {s} في التعاملات المصرفية بالرمز {o}.",
            ],
        ),
        "de": (
            ["Wie lautet der dreibuchstabige Code der Währung {s}?", "Wie kürzen Banken die Währung {s} ab?"],
            [
                "Der dreibuchstabige Code der Währung {s} lautet {o}.",
                "Banken kürzen die Währung {s} mit {o} ab.",
            ],
        ),
        "el": (
            [
                "Ποιος είναι ο κωδικός τριών γραμμάτων για το νόμισμα «{s}»;",
                "Πώς συντομεύουν οι τράπεζες το νόμισμα «{s}»;",
            ],
            [
                "Ο κωδικός τριών γραμμάτων για το νόμισμα «{s}» είναι {o}.",
                "Οι τράπεζες συντομεύουν το νόμισμα «{s}» ως {o}.",
            ],
        ),
        "en": (
            ["What is the three-letter code of the {s}?", "How do banks abbreviate the {s}?"],
            ["The three-letter code of the {s} is {o}.", "Banks abbreviate the {s} as {o}."],
        ),
        "es": (
            [
                "¿Cuál es el código de tres letras de la moneda {s}?",
                "¿Cómo abrevian los bancos la moneda {s}?",
            ],
            [
                "El código de tres letras de la moneda {s} es {o}.",
                "Los bancos abrevian la moneda {s} como {o}.",
            ],
        ),
        "hi": (
            ["{s} मुद्रा का तीन अक्षरों वाला कोड क्या है?", "बैंक {s} मुद्रा को संक्षेप में कैसे लिखते हैं?"],
            ["{s} मुद्रा का तीन अक्षरों वाला कोड {o} है।", "बैंक {s} मुद्रा को संक्षेप में {o} लिखते हैं।"],
        ),
        "ru": (
            ["Какой трёхбуквенный код у валюты «{s}»?", "Как банки сокращают название валюты «{s}»?"],
            ["Трёхбуквенный код валюты «{s}» — {o}.", "Банки сокращают название валюты «{s}» как {o}."],
        ),
        "th": (
            ["รหัสสามตัวอักษรของสกุลเงิน{s}คืออะไร", "ธนาคารย่อชื่อสกุลเงิน{s}ว่าอะไร"],
            ["รหัสสามตัวอักษรของสกุลเงิน{s}คือ {o}", "ธนาคารย่อชื่อสกุลเงิน{s}ว่า {o}"],
        ),
        "tr": (
            ["{s} para birimi için üç harfli kod nedir?", "Bankalar {s} para birimini nasıl kısaltır?"],
            [
                "{s} para birimi için üç harfli kod {o} olarak belirlenmiştir.",
                "Bankalar {s} para birimini {o} olarak kısaltır.",
            ],
        ),
        "vi": (
            ["Mã ba chữ cái của {s} là gì?", "Các ngân hàng viết tắt {s} như thế nào?"],
            ["Mã ba chữ cái của {s} là {o}.", "Các ngân hàng viết tắt {s} là {o}."],
        ),
        "zh": (
            ["{s}的三位字母代码是什么？", "银行怎样缩写{s}这种货币？"],
            ["{s}的三位字母代码是{o}。", "银行把{s}这种货币缩写为{o}。"],
        ),
    },
    "currency_decimals": {
        "ar": (
            ["كم عدد الخانات العشرية في مبالغ العملة {s}؟", "بكم رقم بعد الفاصلة تُكتب مبالغ العملة {s}؟"],
            [
                "عدد الخانات العشرية في مبالغ العملة {s} هو {o}.",
                "عدد الأرقام بعد الفاصلة في مبالغ العملة {s} يساوي {o}.",
            ],
        ),
        "de": (
            [
                "Wie viele Nachkommastellen haben Beträge in der Währung {s}?",
                "Währung {s}: Wie viele Ziffern stehen hinter dem Komma?",
            ],
            [
                "Für Beträge in der Währung {s} ist die Zahl der Nachkommastellen {o}.",
                "Währung {s}: Zahl der Ziffern hinter dem Komma ist {o}.",
            ],
        ),
        "el": (
            [
                "Πόσα δεκαδικά ψηφία έχουν τα ποσά στο νόμισμα «{s}»;",
                "Με πόσα δεκαδικά γράφονται οι τιμές στο νόμισμα «{s}»;",
            ],
            [
                "Ο αριθμός δεκαδικών ψηφίων στα ποσά με νόμισμα «{s}» είναι {o}.",
                "Αριθμός δεκαδικών στις τιμές με νόμισμα «{s}»: {o}.",
            ],
        ),
        "en": (
            [
                "How many decimal places do amounts in the {s} have?",
                "How many digits follow the decimal point in prices in the {s}?",
            ],
            [
                "The number of decimal places in amounts in the {s} is {o}.",
                "In prices in the {s}, the number of digits after the decimal point is {o}.",
            ],
        ),
        "es": (
            [
                "¿Cuántos decimales llevan los importes en la moneda {s}?",
                "¿Cuántas cifras siguen a la coma en los precios en la moneda {s}?",
            ],
            [
                "El número de decimales de los importes en la moneda {s} es {o}.",
                "En los precios en la moneda {s}, el número de cifras tras la coma es {o}.",
            ],
        ),
        "hi": (
            [
                "{s} मुद्रा की राशियों में दशमलव के कितने स्थान होते हैं?",
                "{s} मुद्रा की कीमतों में दशमलव के बाद कितने अंक लिखे जाते हैं?",
            ],
            [
                "{s} मुद्रा की राशियों में दशमलव स्थानों की संख्या {o} है।",
                "{s} मुद्रा की कीमतों में दशमलव के बाद अंकों की संख्या {o} है।",
            ],
        ),
        "ru": (
            [
                "Сколько знаков после запятой у сумм в валюте «{s}»?",
                "Сколько десятичных цифр пишут в ценах в валюте «{s}»?",
            ],
            [
                "Число знаков после запятой у сумм в валюте «{s}» — {o}.",
                "Число десятичных цифр в ценах в валюте «{s}»: {o}.",
            ],
        ),
        "th": (
            ["จำนวนเงินในสกุล{s}มีทศนิยมกี่ตำแหน่ง", "ราคาในสกุลเงิน{s}เขียนตัวเลขหลังจุดทศนิยมกี่ตัว"],
            ["จำนวนเงินในสกุล{s}มีทศนิยม {o} ตำแหน่ง", "ราคาในสกุลเงิน{s}เขียนตัวเลขหลังจุดทศนิยม {o} ตัว"],
        ),
        "tr": (
            [
                "{s} para biriminde tutarların kaç ondalık basamağı vardır?",
                "{s} para birimindeki fiyatlarda virgülden sonra kaç rakam yazılır?",
            ],
            [
                "{s} para biriminde tutarların ondalık basamak sayısı {o} olur.",
                "{s} para birimindeki fiyatlarda virgülden sonraki rakam sayısı {o} olur.",
            ],
        ),
        "vi": (
            [
                "Số tiền bằng {s} có bao nhiêu chữ số thập phân?",
                "Giá bằng {s} được ghi với mấy chữ số sau dấu phẩy?",
            ],
            [
                "Số tiền bằng {s} có {o} chữ số thập phân.",
                "Giá bằng {s} được ghi với {o} chữ số sau dấu phẩy.",
            ],
        ),
        "zh": (
            ["以{s}计的金额有几位小数？", "用{s}标价时，小数点后写几位数字？"],
            ["以{s}计的金额有{o}位小数。", "用{s}标价时，小数点后写{o}位数字。"],
        ),
    },
    "currency_territories": {
        "ar": (
            [
                "ما هي البلدان أو الأقاليم التي تتشارك العملة {s}؟",
                "أين تُستخدم العملة {s} المشتركة بين عدة أماكن؟",
            ],
            ["تتشارك العملة {s} البلدان والأقاليم التالية: {o}.", "العملة {s} مشتركة بين عدة أماكن: {o}."],
        ),
        "de": (
            [
                "Welche Länder oder Gebiete teilen sich die Währung {s}?",
                "Wo überall gilt die gemeinsame Währung {s}?",
            ],
            [
                "Die Währung {s} teilen sich diese Länder oder Gebiete: {o}.",
                "Die gemeinsame Währung {s} gilt an mehreren Orten: {o}.",
            ],
        ),
        "el": (
            ["Ποιες χώρες ή περιοχές μοιράζονται το νόμισμα «{s}»;", "Πού ισχύει το κοινό νόμισμα «{s}»;"],
            [
                "Το νόμισμα «{s}» μοιράζονται οι εξής χώρες ή περιοχές: {o}.",
                "Το κοινό νόμισμα «{s}» ισχύει σε πολλά μέρη: {o}.",
            ],
        ),
        "en": (
            ["Which countries or territories share the {s}?", "Where is the {s} a common currency?"],
            [
                "The countries and territories that share the {s} are {o}.",
                "The {s} is a common currency of several places: {o}.",
            ],
        ),
        "es": (
            ["¿Qué países o territorios comparten la moneda {s}?", "¿Dónde circula la moneda común {s}?"],
            [
                "Los países y territorios que comparten la moneda {s} son: {o}.",
                "La moneda común {s} circula en varios lugares: {o}.",
            ],
        ),
        "hi": (
            ["कौन-से देश या क्षेत्र {s} मुद्रा साझा करते हैं?", "{s} किन जगहों की साझा मुद्रा है?"],
            ["{s} मुद्रा साझा करने वाले देश और क्षेत्र ये हैं: {o}।", "{s} कई जगहों की साझा मुद्रा है: {o}।"],
        ),
        "ru": (
            ["Какие страны или территории пользуются общей валютой «{s}»?", "Где ходит общая валюта «{s}»?"],
            [
                "Общей валютой «{s}» пользуются эти страны и территории: {o}.",
                "Общая валюта «{s}» ходит в нескольких местах: {o}.",
            ],
        ),
        "th": (
            ["ประเทศหรือดินแดนใดบ้างใช้สกุลเงิน{s}ร่วมกัน", "สกุลเงินร่วม{s}ใช้ที่ใดบ้าง"],
            ["ประเทศและดินแดนที่ใช้สกุลเงิน{s}ร่วมกันได้แก่{o}", "สกุลเงินร่วม{s}ใช้ในหลายแห่งได้แก่{o}"],
        ),
        "tr": (
            [
                "Hangi ülkeler ya da bölgeler {s} para birimini paylaşır?",
                "Ortak para birimi {s} nerelerde geçerlidir?",
            ],
            [
                "{s} para birimini paylaşan ülke ve bölgeler: {o}.",
                "Ortak para birimi {s} birkaç yerde geçerlidir: {o}.",
            ],
        ),
        "vi": (
            ["Những quốc gia hoặc vùng lãnh thổ nào dùng chung {s}?", "Đồng tiền chung {s} lưu hành ở đâu?"],
            [
                "Các quốc gia và vùng lãnh thổ dùng chung {s} là {o}.",
                "Đồng tiền chung {s} lưu hành ở nhiều nơi: {o}.",
            ],
        ),
        "zh": (
            ["哪些国家或地区共同使用{s}？", "{s}是哪些地方的共同货币？"],
            ["共同使用{s}的国家和地区有{o}。", "{s}是多个地方的共同货币：{o}。"],
        ),
    },
    "former_currency_territories": {
        "ar": (
            [
                "أين كانت العملة {s} متداولة في الماضي؟",
                "ما هو البلد أو الإقليم الذي استخدم العملة القديمة {s}؟",
            ],
            ["كانت العملة {s} متداولة في الماضي في {o}.", "العملة القديمة {s} استُخدمت سابقًا في {o}."],
        ),
        "de": (
            [
                "Wo galt früher die Währung {s}?",
                "Welches Land oder Gebiet verwendete die ehemalige Währung {s}?",
            ],
            [
                "Die Währung {s} galt früher hier: {o}.",
                "Mit der ehemaligen Währung {s} bezahlte man dort: {o}.",
            ],
        ),
        "el": (
            [
                "Πού ίσχυε παλαιότερα το νόμισμα «{s}»;",
                "Ποια χώρα ή περιοχή χρησιμοποιούσε το πρώην νόμισμα «{s}»;",
            ],
            [
                "Το νόμισμα «{s}» ίσχυε παλαιότερα εδώ: {o}.",
                "Το πρώην νόμισμα «{s}» χρησιμοποιούνταν εδώ: {o}.",
            ],
        ),
        "en": (
            [
                "Where was the {s} used in the past?",
                "Which country or territory once used the former currency {s}?",
            ],
            ["In the past, the {s} was used in {o}.", "The former currency {s} once circulated in {o}."],
        ),
        "es": (
            ["¿Dónde se usaba antes la moneda {s}?", "¿Qué país o territorio utilizó la antigua moneda {s}?"],
            ["La moneda {s} se usaba antes en {o}.", "La antigua moneda {s} circuló en otro tiempo en {o}."],
        ),
        "hi": (
            ["{s} मुद्रा पहले कहाँ चलती थी?", "पुरानी मुद्रा {s} किस देश या क्षेत्र में इस्तेमाल होती थी?"],
            ["{s} मुद्रा पहले {o} में चलती थी।", "पुरानी मुद्रा {s} {o} में इस्तेमाल होती थी।"],
        ),
        "ru": (
            [
                "Где раньше ходила валюта «{s}»?",
                "Какая страна или территория пользовалась прежней валютой «{s}»?",
            ],
            [
                "Валюта «{s}» раньше ходила здесь: {o}.",
                "Прежней валютой «{s}» пользовались здесь: {o}.",
            ],
        ),
        "th": (
            ["ในอดีตสกุลเงิน{s}เคยใช้ที่ไหน", "ประเทศหรือดินแดนใดเคยใช้สกุลเงินเก่า{s}"],
            ["ในอดีตสกุลเงิน{s}เคยใช้ใน{o}", "สกุลเงินเก่า{s}เคยเป็นเงินของ{o}"],
        ),
        "tr": (
            [
                "{s} para birimi eskiden nerede kullanılırdı?",
                "Eski para birimi {s} hangi ülke ya da bölgede geçerliydi?",
            ],
            [
                "{s} para birimi eskiden burada kullanılırdı: {o}.",
                "Eski para birimi {s} burada geçerliydi: {o}.",
            ],
        ),
        "vi": (
            ["Trước đây {s} được dùng ở đâu?", "Quốc gia hoặc vùng lãnh thổ nào từng dùng đồng tiền cũ {s}?"],
            ["Trước đây {s} được dùng ở {o}.", "Đồng tiền cũ {s} từng lưu hành ở {o}."],
        ),
        "zh": (
            ["{s}过去在哪里使用？", "哪个国家或地区曾使用旧货币{s}？"],
            ["{s}过去在{o}使用。", "旧货币{s}曾在{o}流通。"],
        ),
    },
}
