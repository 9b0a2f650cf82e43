// What our widgets say, in the page's language.

export const WORDS = {
  en: {
    noise: "noise",
    clean: "clean",
    down: "denoise",
    up: "add noise",
    calls: (steps, calls) => `${steps} step${steps > 1 ? "s" : ""}, ${calls} model call${calls > 1 ? "s" : ""}`,
    schedule: "SD schedule; flow models have other levels",
    assumed: "SD schedule and TCD's timesteps, not the connected sigmas",
    nothing: "denoise 0: the latent is returned unchanged",
    step: (i, t, now, s, down) => `step ${i}: from timestep ${t} (noise ${now}) down to ${s} (${down})`,
    back: (next, up) => `, back up to ${next} (${up})`,
    last: "; no noise is added",

    apply: "Apply",
    applied: (nodes) => `set on ${nodes} node${nodes > 1 ? "s" : ""}`,
    nowhere: "no TCD sampler is connected after this node",
    reading: "reading the file \u2026",
    unchosen: "no LoRA chosen",
    silent: "the server does not answer",
    unknown: "no settings known for this file",
    preset: (steps, cfg, gamma) => `${steps} step${steps > 1 ? "s" : ""}, cfg ${cfg}, gamma ${gamma}`,
    strength: (strength) => `strength ${strength}, `,

    empty: "The loss and pictures of the run appear here.",
    states: { starting: "starting", training: "training", done: "done", stopped: "stopped", failed: "failed" },
    loss: "loss",
    scale: "loss, on a logarithmic scale; the strong line is the mean of nine points",
    speed: (rate) => `${rate} samples/s`,
    left: (time) => `${time} left`,
    pictures: "pictures at step",
    picture: (step) => `step ${step}`,
    enlarge: "click to enlarge",
  },
  zh: {
    noise: "噪声",
    clean: "干净",
    down: "去噪",
    up: "加噪",
    calls: (steps, calls) => `${steps} 步，调用模型 ${calls} 次`,
    schedule: "按 SD 的噪声调度绘制；流模型的噪声水平不同",
    assumed: "按 SD 的噪声调度和 TCD 的时间步绘制，并非所连接的 sigmas",
    nothing: "降噪为 0：原样返回 Latent",
    step: (i, t, now, s, down) => `第 ${i} 步：从时间步 ${t}（噪声 ${now}）降到 ${s}（${down}）`,
    back: (next, up) => `，再升回 ${next}（${up}）`,
    last: "；不加噪声",

    apply: "应用",
    applied: (nodes) => `已设置 ${nodes} 个节点`,
    nowhere: "此节点之后没有连接 TCD 采样器",
    reading: "正在读取文件…",
    unchosen: "未选择 LoRA",
    silent: "服务器没有响应",
    unknown: "不知道此文件的推荐设置",
    preset: (steps, cfg, gamma) => `${steps} 步，CFG ${cfg}，gamma ${gamma}`,
    strength: (strength) => `强度 ${strength}，`,

    empty: "运行的损失和图片会显示在这里。",
    states: { starting: "准备中", training: "训练中", done: "完成", stopped: "已停止", failed: "失败" },
    loss: "损失",
    scale: "损失，对数刻度；粗线是九个点的平均值",
    speed: (rate) => `${rate} 样本/秒`,
    left: (time) => `剩余 ${time}`,
    pictures: "验证图，步数",
    picture: (step) => `第 ${step} 步`,
    enlarge: "点击放大",
  },
  ja: {
    noise: "ノイズ",
    clean: "なし",
    down: "ノイズ除去",
    up: "ノイズ追加",
    calls: (steps, calls) => `${steps} ステップ、モデル呼び出し ${calls} 回`,
    schedule: "SD のスケジュールによる図。フローモデルではノイズ量が異なります",
    assumed: "SD と TCD の標準による図。接続された sigmas とは異なります",
    nothing: "denoise 0：潜在画像をそのまま返します",
    step: (i, t, now, s, down) => `ステップ ${i}：タイムステップ ${t}（ノイズ ${now}）から ${s}（${down}）へ下がり`,
    back: (next, up) => `、${next}（${up}）へ戻ります`,
    last: "、ノイズは加えません",

    apply: "適用",
    applied: (nodes) => `${nodes} 個のノードに設定しました`,
    nowhere: "このノードの後に TCD サンプラーが接続されていません",
    reading: "ファイルを読み込み中…",
    unchosen: "LoRA が選ばれていません",
    silent: "サーバーが応答しません",
    unknown: "このファイルに合う設定は分かりません",
    preset: (steps, cfg, gamma) => `${steps} ステップ、CFG ${cfg}、gamma ${gamma}`,
    strength: (strength) => `強度 ${strength}、`,

    empty: "実行中の損失と画像がここに表示されます。",
    states: { starting: "準備中", training: "学習中", done: "完了", stopped: "停止", failed: "失敗" },
    loss: "損失",
    scale: "損失（対数目盛）。太い線は 9 点の平均です",
    speed: (rate) => `${rate} サンプル/秒`,
    left: (time) => `残り ${time}`,
    pictures: "検証画像、ステップ",
    picture: (step) => `ステップ ${step}`,
    enlarge: "クリックで拡大",
  },
};

/** What the server says, with "..." for what it fills in; other sentences, such as errors, stay as they are. */
export const TOLD = {
  zh: {
    "encoding the prompts, the teacher's first trajectories": "正在编码提示词，生成教师模型的第一批轨迹",
    "batch ... x ..., everything kept, ... GiB for training": "批次 ... x ...，保留全部中间结果，训练需要 ... GiB",
    "batch ... x ..., blocks recomputed, ... GiB for training": "批次 ... x ...，重新计算各模块，训练需要 ... GiB",
    "the teacher draws what comes next: step ... of ...": "教师模型正在生成后续样本：第 ... 步，共 ... 步",
    "stopped; queue it again to go on": "已停止；再次运行即可继续",
    "saved as loras/...": "已保存为 loras/...",
    "there is no LoRA ... in models/loras; refresh the page's node definitions":
      "models/loras 中没有 LoRA ...；请刷新页面的节点定义",
    "1 to 8 steps; with several, lower gamma for more detail": "1 到 8 步；多步时降低 gamma，细节更多",
    "this number of steps; cfg 5 to 8": "就用这个步数；CFG 5 到 8",
    "this number of steps; Flux guidance 3.5": "就用这个步数；Flux 引导 3.5",
    "this number of steps, by DDIM on the card": "就用这个步数；模型卡使用 DDIM",
    "this number of steps": "就用这个步数",
    "this number of steps; cfg 3, 5 or 7": "就用这个步数；CFG 3、5 或 7",
    "this number of steps; gamma 0 is Euler": "就用这个步数；gamma 为 0 即 Euler",
    "gamma 0 is Euler": "gamma 为 0 即 Euler",
    "4 to 8 steps": "4 到 8 步",
    "4 to 8 steps; Flux guidance 2": "4 到 8 步；Flux 引导 2",
    "1 to 4 steps; trained for 512 pixels": "1 到 4 步；按 512 像素训练",
    "this number of steps; Flux guidance 2.5": "就用这个步数；Flux 引导 2.5",
    "4 to 10 steps; its users take er_sde or Euler a": "4 到 10 步；用户多用 er_sde 或 Euler a",
    "gamma 1 samples as LCM does": "gamma 为 1 时与 LCM 的采样相同",
    "any number of steps; raise gamma with it": "步数不限；步数越多，gamma 越大",
    "2 to 8 steps; cfg up to 2; gamma 1 samples as LCM does": "2 到 8 步；CFG 不超过 2；gamma 为 1 时与 LCM 的采样相同",
    "s was ... in training": "训练时 s 为 ...",
    "s was ... in training; guidance cfg ... to ... is built in": "训练时 s 为 ...；已内含 CFG ... 到 ... 的引导",
  },
  ja: {
    "encoding the prompts, the teacher's first trajectories": "プロンプトのエンコードと、教師モデルの最初の軌道の生成",
    "batch ... x ..., everything kept, ... GiB for training": "バッチ ... x ...、途中結果をすべて保持、学習に ... GiB",
    "batch ... x ..., blocks recomputed, ... GiB for training": "バッチ ... x ...、ブロックを再計算、学習に ... GiB",
    "the teacher draws what comes next: step ... of ...": "教師モデルが次のサンプルを生成中：... / ... ステップ",
    "stopped; queue it again to go on": "停止しました。もう一度実行すると続きから始まります",
    "saved as loras/...": "loras/... に保存しました",
    "there is no LoRA ... in models/loras; refresh the page's node definitions":
      "models/loras に LoRA ... がありません。ページのノード定義を更新してください",
    "1 to 8 steps; with several, lower gamma for more detail": "1～8 ステップ、複数なら gamma を下げて細部を出す",
    "this number of steps; cfg 5 to 8": "このステップ数で。CFG 5 から 8",
    "this number of steps; Flux guidance 3.5": "このステップ数で。Flux のガイダンスは 3.5",
    "this number of steps, by DDIM on the card": "このステップ数で。モデルカードでは DDIM",
    "this number of steps": "このステップ数で",
    "this number of steps; cfg 3, 5 or 7": "このステップ数で。CFG 3、5 または 7",
    "this number of steps; gamma 0 is Euler": "このステップ数で。gamma 0 は Euler です",
    "gamma 0 is Euler": "gamma 0 は Euler です",
    "4 to 8 steps": "4～8 ステップ",
    "4 to 8 steps; Flux guidance 2": "4～8 ステップ。Flux のガイダンスは 2",
    "1 to 4 steps; trained for 512 pixels": "1～4 ステップ。512 ピクセルで学習されています",
    "this number of steps; Flux guidance 2.5": "このステップ数で。Flux のガイダンスは 2.5",
    "4 to 10 steps; its users take er_sde or Euler a": "4～10 ステップ。利用者は er_sde か Euler a を使っています",
    "gamma 1 samples as LCM does": "gamma 1 は LCM と同じサンプリングです",
    "any number of steps; raise gamma with it": "ステップ数は自由、多いほど gamma も上げる",
    "2 to 8 steps; cfg up to 2; gamma 1 samples as LCM does": "2～8 ステップ、CFG は 2 まで、gamma 1 は LCM と同じ",
    "s was ... in training": "学習時の s は ...",
    "s was ... in training; guidance cfg ... to ... is built in": "学習時の s は ...。CFG ... から ... のガイダンスを含みます",
  },
};
const GAP = "...";

/** `text` by the first template of `told` that it fits; itself where none does. Pure. */
export function translated(told, text) {
  for (const [template, other] of Object.entries(told)) {
    const parts = template.split(GAP).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const found = text.match(new RegExp(`^${parts.join("(.+?)")}$`));
    if (found) return other.split(GAP).map((part, i) => part + (found[i + 1] ?? "")).join("");
  }
  return text;
}

/** In the language that the page is set to, in English where it is not known: its words, and `told(text)`. */
export function words(app) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale");
  return { ...(WORDS[language] ?? WORDS.en), told: (text) => translated(TOLD[language] ?? {}, text) };
}
