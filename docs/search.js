// The search takes a word with a dash before it as one that must not be there. Options such as
// --idle-unload begin with dashes: they are taken off as they are typed.
addEventListener(
  "input",
  (event) => {
    const field = event.target;
    if (!field.matches(".md-search__input")) return;
    const words = field.value.replace(/(^|\s)-+(?=[^\s-])/g, "$1");
    if (words !== field.value) field.value = words;
  },
  true,
);

// The index holds none of lunr's stop words, and the search finds what begins with a word: "a" would
// find all that begins with a letter a. So questions are asked without them, and in the singular,
// with which the plural begins.
const STOP_WORDS = new Set(
  (
    "a able about across after all almost also am among an and any are as at be because been but " +
    "by can cannot could dear did do does either else ever every for from get got had has have " +
    "he her hers him his how however i if in into is it its just least let like likely may me " +
    "might most must my neither no nor not of off often on only or other our own rather said say " +
    "says she should since so some than that the their them then there these they this tis to " +
    "too twas us wants was we were what when where which while who whom why will with would yet " +
    "you your"
  ).split(" "),
);

function asked(question) {
  const words = question.split(/\s+/).map((word) => word.replace(/[?!.,;]+$/, ""));
  const kept = words.filter((word) => word && !STOP_WORDS.has(word.toLowerCase()));
  return kept.length ? kept.map(singular).join(" ") : question;
}

function singular(word) {
  if (word.length < 4 || /^https$|[sui]s$/i.test(word)) return word;
  return word.replace(/ies$|s$/, "");
}

// The theme asks its worker with messages of this type.
const QUERY = 2;
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  const changed = message?.type === QUERY ? { ...message, data: asked(message.data) } : message;
  return post.call(this, changed, ...rest);
};
