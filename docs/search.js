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
